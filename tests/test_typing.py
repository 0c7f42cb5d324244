"""`nnzoo.typing`: names for the shapes of hook points, which catch a swapped axis in a user's own function."""

import pytest
import torch
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped

from families import PLAIN, ids, ours, prompt
from nnzoo import LanguageModel, typing
from nnzoo.typing import Heads, KVHeads, Logits, Pattern, Resid

NAMED = {  # what nnzoo/typing.py says of each name
    "Tokens": ["hook_tokens", "hook_positions"],
    "Resid": ["hook_embed", "blocks.1.hook_resid_pre", "blocks.1.hook_mlp_out", "blocks.1.ln1.hook_out"],
    "Scale": ["blocks.1.ln1.hook_scale", "ln_final.hook_scale"],
    "QKV": ["blocks.1.attn.hook_qkv"],
    "Heads": ["blocks.1.attn.hook_q", "blocks.1.attn.hook_z"],
    "KVHeads": ["blocks.1.attn.hook_k", "blocks.1.attn.hook_v"],
    "Keys": ["blocks.1.attn.hook_rot_k"],
    "HeadResid": ["blocks.1.attn.hook_result", "blocks.1.hook_attn_in", "blocks.1.hook_q_input"],
    "KVHeadResid": ["blocks.1.hook_k_input", "blocks.1.hook_v_input"],
    "Scores": ["blocks.1.attn.hook_attn_scores"],
    "Pattern": ["blocks.1.attn.hook_pattern"],
    "Rotation": ["rotary.hook_cos", "rotary.hook_sin"],
    "Neurons": ["blocks.1.mlp.hook_pre", "blocks.1.mlp.hook_post"],
    "Logits": ["unembed.hook_out"],
}


@jaxtyped(typechecker=beartype)
def gather(pattern: Pattern, v: KVHeads) -> Heads:
    return torch.einsum("bhqk,bkhd->bqhd", pattern, v)


def axes_of(alias) -> str:
    return alias.dim_str


def test_every_name_is_named_for_hook_points():
    assert sorted(NAMED) == sorted(typing.__all__)


@ids(PLAIN)
def test_a_name_has_the_axes_of_its_hook_points(family, setting):
    points = ours(family, setting).hook_points
    for name, hooks in NAMED.items():
        for hook in hooks:
            if hook in points:
                axes = axes_of(getattr(typing, name))
                declared = points[hook].axes
                assert declared in (axes, axes.replace("kv_head", "head")), hook


@ids(PLAIN)
def test_every_hook_point_has_a_name(family, setting):
    known = {axes_of(getattr(typing, name)) for name in typing.__all__}
    known |= {axes.replace("kv_head", "head") for axes in known}
    assert {point.axes for point in ours(family, setting).hook_points.values()} <= known


@ids(PLAIN)
def test_what_passes_is_what_the_names_say(family, setting):
    _, cache = ours(family, setting).run_with_cache(prompt(2, 5), names_filter=lambda name: True)
    for name, hooks in NAMED.items():
        if name != "QKV":  # a multiple of an axis that stands beside it
            assert all(isinstance(cache[hook], getattr(typing, name)) for hook in hooks if hook in cache), name


def test_a_swapped_axis_is_caught_and_named():
    _, cache = ours("gpt2", "default").run_with_cache(prompt(2, 5))
    pattern, v = cache["pattern", 1], cache["v", 1]
    torch.testing.assert_close(gather(pattern, v), cache["z", 1])
    with pytest.raises(TypeCheckError, match="batch pos kv_head d_head"):
        gather(pattern, v[0])
    with pytest.raises(TypeCheckError, match=r"(?s)batch head query key.*batch=2"):
        swap(pattern.transpose(1, 2), v)


@jaxtyped(typechecker=beartype)
def swap(pattern: Pattern, v: Heads) -> Heads:
    return torch.einsum("bhqk,bkhd->bqhd", pattern, v)


def test_a_trace_checks_before_the_model_runs():
    @jaxtyped(typechecker=beartype)
    def steer(hidden: Resid, logits: Logits) -> Resid:
        return hidden * logits.sum()

    model = LanguageModel("nnzoo/tiny-gpt2")
    with pytest.raises(TypeCheckError, match="pos"):
        with model.trace("The capital of France is"):
            steer(model.transformer.h[1].output[0][:, :2], model.output)
    assert model._weights.native is None
