"""TransformerLens's side: forward, cache, generation, patching of a GPT-2 with random weights of the folder's sizes."""

import json
import os
from functools import cache

import torch
from answer import NEW, serve
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.patching import get_act_patch_resid_pre


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
        device="cpu",
    )
    return HookedTransformer(config).eval()


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


def patching(folder, tokens):
    model, clean = model_of(folder), tokens.roll(1)

    def preference(logits):
        return (logits[:, -1, 1] - logits[:, -1, 2]).mean()

    def work():
        _, cache = model.run_with_cache(clean)
        return get_act_patch_resid_pre(model, tokens, cache, preference)

    return torch.no_grad()(work)


serve({"forward": forward, "cache": cached, "generate": generate, "patching": patching})
