"""TransformerLens's side: forward, cache, generation, patching of a folder's GPT-2."""

import json
import os
from functools import cache

import torch
from answer import DEVICE, DTYPE, NEW, serve
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.patching import get_act_patch_attn_head_out_all_pos, get_act_patch_resid_pre
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import GPT2LMHeadModel


@cache
def model_of(folder):
    with open(os.path.join(folder, "config.json")) as file:
        theirs = json.load(file)
    config = HookedTransformerConfig(
        n_layers=theirs["n_layer"],
        d_model=theirs["n_embd"],
        n_heads=theirs["n_head"],
        d_head=theirs["n_embd"] // theirs["n_head"],
        d_mlp=theirs["n_inner"],
        n_ctx=theirs["n_positions"],
        d_vocab=theirs["vocab_size"],
        act_fn="gelu_new",
        normalization_type="LN",
        default_prepend_bos=False,
        device=DEVICE,
        dtype=DTYPE,
    )
    model = HookedTransformer(config)
    weights = GPT2LMHeadModel.from_pretrained(folder, dtype=DTYPE)
    model.load_state_dict(convert_gpt2_weights(weights.to(DEVICE), config), strict=False)
    return model.eval()


def forward(folder, tokens):
    model = model_of(folder)
    return torch.no_grad()(lambda: model(tokens))


def cached(folder, tokens):
    model = model_of(folder)
    return torch.no_grad()(lambda: model.run_with_cache(tokens))


def generate(folder, tokens):
    model = model_of(folder)
    settings = {"do_sample": False, "stop_at_eos": False, "verbose": False, "return_type": "tokens"}
    return lambda: model.generate(tokens, max_new_tokens=NEW, **settings)


def patching(folder, tokens, sweep=get_act_patch_resid_pre):
    model, clean = model_of(folder), tokens.roll(1)

    def preference(logits):
        return (logits[:, -1, 1] - logits[:, -1, 2]).mean()

    def work():
        _, cache = model.run_with_cache(clean)
        return sweep(model, tokens, cache, preference)

    return torch.no_grad()(work)


def patching_of_heads(folder, tokens):
    return patching(folder, tokens, get_act_patch_attn_head_out_all_pos)


serve(
    {
        "forward": forward,
        "cache": cached,
        "generate": generate,
        "patching": patching,
        "patching of heads": patching_of_heads,
    }
)
