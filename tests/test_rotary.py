"""Rotary embedding: transformers' frequencies, a rotation, and one that sees only how far apart two tokens stand."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from families import BASE, ROPES, error, ours, prompt
from nnzoo.architectures.rotary import DynamicRope, LinearRope, Rope, Rotary, rotate, rotation

POSITIONS = torch.tensor([[0, 1, 2, 7, 31, 32, 63]])
EVERY_ROPE = pytest.mark.parametrize("setting", ["default", *ROPES])


@EVERY_ROPE
def test_cosines_and_sines_are_those_of_transformers(setting):
    config = LlamaConfig(**{**BASE["llama"], **ROPES.get(setting, {})})
    theirs = LlamaRotaryEmbedding(config)(torch.zeros(1, dtype=torch.float64), POSITIONS)
    a = ours("llama", setting).rotary(POSITIONS, torch.float64)
    for mine, wanted in zip(a, theirs, strict=True):
        assert torch.equal(mine, wanted)


@EVERY_ROPE
def test_a_cast_of_the_model_does_not_round_the_frequencies(setting):
    model = copy.deepcopy(ours("llama", setting))
    before = model.rotary(POSITIONS, torch.float32)
    model.to(torch.bfloat16).to(torch.float64)
    for a, b in zip(model.rotary(POSITIONS, torch.float32), before, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_the_cosines_and_not_the_angles(dtype):
    rotary, far = Rotary(Rope(theta=1e4), d_head=16), torch.tensor([[4001]])
    for half, full in zip(rotary(far, dtype), rotary(far, torch.float32), strict=True):
        assert torch.equal(half, full.to(dtype))


def turned(x: Tensor, position: int, rope: Rope) -> Tensor:
    """One vector as it stands at a position."""
    angles = Rotary(rope, len(x))(torch.tensor([[position]]), x.dtype)
    return rotate(x[None, None, None], rotation(*angles))[0, 0, 0]


@pytest.mark.parametrize("rope", [Rope(theta=100.0), LinearRope(theta=100.0, factor=3.0)], ids=["plain", "linear"])
def test_a_query_and_a_key_see_only_how_far_apart_they_stand(rope):
    q, k = torch.randn(2, 8, dtype=torch.float64)
    near, far = (turned(q, at + 5, rope) @ turned(k, at, rope) for at in (3, 40))
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-4)  # angles are float32
    assert (turned(q, 8, rope) @ turned(k, 4, rope) - near).abs() > 1e-2


def test_a_rotation_keeps_lengths():
    x = torch.randn(8, dtype=torch.float64)
    torch.testing.assert_close(turned(x, 37, Rope(theta=100.0)).norm(), x.norm(), rtol=1e-6, atol=0)


def test_pairs_turn_counterclockwise_by_position_times_frequency():
    theta, position = 100.0, 3
    x = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)  # pairs (x0, x2) and (x1, x3): theta^0 and theta^-1/2
    first, second = torch.tensor(position * 1.0), torch.tensor(position * 0.1)
    wanted = torch.stack([first.cos(), -second.sin(), first.sin(), second.cos()]).double()
    assert error(turned(x, position, Rope(theta=theta)), wanted) < 1e-6


def test_dynamic_rope_is_plain_up_to_the_trained_length_and_slower_past_it():
    rope, plain = DynamicRope(theta=100.0, factor=2.0, n_ctx=8), Rope(theta=100.0).frequencies(8)
    within, past = rope.frequencies_at(8, torch.tensor([8, 9]))[:, 0]
    assert torch.equal(within, plain)
    assert past[0] == plain[0]
    assert (past[1:] < plain[1:]).all()


def test_dynamic_rope_reaches_factor_times_the_trained_length():
    model = ours("llama", "rope=dynamic")
    assert model(prompt(1, 160)).shape[1] == 160
    with pytest.raises(ValueError, match="161 tokens, but the model has 160 positions"):
        model(prompt(1, 161))


@EVERY_ROPE
def test_a_rotary_built_on_meta_runs_on_meta(setting):
    rope = ours("llama", setting).config.rope
    with torch.device("meta"):
        rotary = Rotary(rope, 16)
        cos, sin = rotary(torch.zeros(2, 5, dtype=torch.long), torch.float32)
    assert cos.is_meta
    assert sin.shape == (2, 5, 16)
    assert not rotary(POSITIONS, torch.float32)[0].is_meta
