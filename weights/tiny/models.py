"""The tiny models before training, in transformers' own classes, and how their weights begin.

From the usual random weights, induction heads took more steps than all other tasks together. So attention begins with
queries that match equal keys and outputs that copy values (Trockman and Kolter 2023, Mimetic Initialization of
Self-Attention Layers), and the first head of the first layer begins by looking one token back. All of it is trained.
"""

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from nnzoo.weights.tiny.tokenizer import CONTEXT_LENGTH

SLIDING_WINDOW = 32


def build_model(family: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """An untrained model of a family."""
    shared = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.05,
    }
    if family == "gpt2":
        sizes = {"n_positions": CONTEXT_LENGTH, "n_embd": 96, "n_layer": 4, "n_head": 4, "n_inner": 192}
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return _begin(GPT2LMHeadModel(GPT2Config(**sizes, **dropout, **shared)))
    sizes = {
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "tie_word_embeddings": True,
    }
    if family == "llama":
        return _begin(LlamaForCausalLM(LlamaConfig(max_position_embeddings=CONTEXT_LENGTH, **sizes, **shared)))
    long = {"max_position_embeddings": CONTEXT_LENGTH, "sliding_window": SLIDING_WINDOW}
    return _begin(MistralForCausalLM(MistralConfig(**long, **sizes, **shared)))


@torch.no_grad()
def _begin(model: PreTrainedModel) -> PreTrainedModel:
    """Start where induction forms within hundreds of steps: queries like keys, outputs like values, a look one back."""
    model.get_input_embeddings().weight.normal_(std=0.1)
    if isinstance(model, GPT2LMHeadModel):
        _begin_gpt2(model)
    else:
        _begin_llama(model)
    for name, parameter in model.named_parameters():
        if name.endswith(("mlp.c_proj.weight", "down_proj.weight")):
            parameter.zero_()
    return model


def _begin_gpt2(model: GPT2LMHeadModel) -> None:
    """Positions start as sinusoids in coordinates of their own, where looking one token back is a rotation."""
    (n, d), d_head = model.transformer.wpe.weight.shape, model.config.n_embd // model.config.n_head
    for block in model.transformer.h:
        q, k, v = block.attn.c_attn.weight.split(d, dim=1)
        q.copy_(k)
        block.attn.c_proj.weight.copy_(v.T)
    rates = 100 ** -torch.linspace(0, 1, d_head // 2)
    angles = torch.arange(n)[:, None] * rates
    model.transformer.wte.weight[:, :d_head] = 0.0
    model.transformer.wpe.weight[:, :d_head] = 0.15 * torch.cat([angles.sin(), angles.cos()], dim=1)
    q, k, _ = model.transformer.h[0].attn.c_attn.weight.split(d, dim=1)
    k[:, :d_head] = 3 * torch.eye(d, d_head)
    cos, sin = rates.cos().diag(), rates.sin().diag()
    q[:, :d_head] = k[:, :d_head] @ torch.cat([torch.cat([cos, sin], dim=1), torch.cat([-sin, cos], dim=1)])


def _begin_llama(model: LlamaForCausalLM | MistralForCausalLM) -> None:
    """Without biases, only what all tokens share lets a head attend by distance alone: the first coordinate, here."""
    model.get_input_embeddings().weight[:, 0] += 1.0
    d_head = model.config.head_dim
    for layer in model.model.layers:
        attn = layer.self_attn
        shared = attn.num_key_value_groups
        repeated = (
            w.weight.view(-1, d_head, w.in_features).repeat_interleave(shared, 0) for w in (attn.k_proj, attn.v_proj)
        )
        k, v = (w.flatten(0, 1) for w in repeated)
        attn.q_proj.weight.add_(k)  # added to, not replaced: two heads on the same keys must not begin as one
        attn.o_proj.weight.copy_(v.T)
    attn, fast = model.model.layers[0].self_attn, torch.arange(4)
    rates = model.model.rotary_emb.inv_freq[fast]
    attn.k_proj.weight[:d_head], attn.q_proj.weight[:d_head] = 0.0, 0.0
    attn.k_proj.weight[fast, 0] = 1.0
    attn.q_proj.weight[fast, 0], attn.q_proj.weight[fast + d_head // 2, 0] = rates.cos(), -rates.sin()
