"""Blocks that a trace has no need of do not run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from families import error, folder, prompt, theirs
from nnzoo import LanguageModel
from nnzoo.tracing.tracer import Tracer

TOKENS = prompt(2, 9)
FOUR = {"gpt2": "default", "llama": "default"}
BLOCKS = {"gpt2": "transformer.h", "llama": "model.layers"}


@pytest.fixture(params=["gpt2", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str) -> LanguageModel:
    return LanguageModel(folder(family, FOUR[family]))


def ran(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which blocks' forward is called from here on."""
    blocks: list[int] = []

    def counted(forward: Callable, layer: int) -> Callable:
        def call(*args: Any) -> Tensor:
            blocks.append(layer)
            return forward(*args)

        return call

    for layer, block in enumerate(model._model.blocks):
        monkeypatch.setattr(block, "forward", counted(block.forward, layer))
    return blocks


def without_block(family: str, layer: int) -> Tensor:
    """The logits of transformers' model with one block taken out."""
    one = theirs(family, FOUR[family])
    block = one.get_submodule(f"{BLOCKS[family]}.{layer}")

    def skipped(module: nn.Module, args: tuple, out: Any) -> Any:
        return (args[0], *out[1:]) if isinstance(out, tuple) else args[0]

    handle = block.register_forward_hook(skipped)
    try:
        with torch.no_grad():
            return one(TOKENS).logits
    finally:
        handle.remove()


def test_a_block_that_is_skipped_by_its_input_does_not_run(
    family: str, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks, block = ran(model, monkeypatch), model.get(f"{BLOCKS[family]}.1")
    with model.trace(TOKENS):
        block.skip((block.input,))
        logits = model.output
    assert 1 not in blocks and blocks == sorted({*range(len(model._model.blocks))} - {1})
    assert error(logits, without_block(family, 1)) < 1e-10


def test_edits_at_both_ends_of_a_skipped_block_hold(
    family: str, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, after = model.get(f"{BLOCKS[family]}.1"), model.get(f"{BLOCKS[family]}.2")
    with model.trace(TOKENS):
        before = block.input.clone()
        block.input[:] *= 2
        block.mlp.output[:] = 0  # something inside: the block runs, and gives what nobody takes
        block.skip((block.input + 1,))
        expected = model.output
    blocks = ran(model, monkeypatch)
    with model.trace(TOKENS):
        block.input[:] *= 2
        block.skip((block.input + 1,))
        came, logits = after.input, model.output
    assert 1 not in blocks and torch.equal(logits, expected) and error(came, 2 * before + 1) < 1e-12


@pytest.mark.parametrize("inside", ["ln1.hook_normalized", "hook_resid_mid", "attn.hook_z"])
def test_reading_something_really_inside_runs_the_block(
    family: str, model: LanguageModel, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    with model.trace(TOKENS) as tracer:
        expected = tracer.read(f"blocks.1.{inside}")
    blocks, block = ran(model, monkeypatch), model.get(f"{BLOCKS[family]}.1")
    with model.trace(TOKENS) as tracer:
        block.skip((block.input,))
        value, logits = tracer.read(f"blocks.1.{inside}"), model.output
    assert 1 in blocks and torch.equal(value, expected)
    assert error(logits, without_block(family, 1)) < 1e-10


def test_blocks_below_an_input_that_is_replaced_do_not_run(
    family: str, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks, stream = ran(model, monkeypatch), torch.ones(2, 9, model.config.d_model, dtype=torch.float64)
    with model.trace(TOKENS):
        model.get(f"{BLOCKS[family]}.1").input = stream
        early = model.output
    assert 0 not in blocks and early.isfinite().all()


def test_a_skip_in_one_of_two_prompts_lets_the_block_run(
    family: str, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks, block = ran(model, monkeypatch), model.get(f"{BLOCKS[family]}.1")

    def both(tracer: Tracer, skips: tuple[bool, bool]) -> list[Tensor]:
        outputs = []
        for skip in skips:
            with tracer.invoke(TOKENS):
                if skip:
                    block.skip((block.input,))
                outputs.append(model.output)
        return outputs

    with model.trace() as tracer:
        first, second = both(tracer, (True, False))
    assert 1 in blocks and not torch.equal(first, second)
    blocks.clear()
    with model.trace() as tracer:
        one, two = both(tracer, (True, True))
    assert 1 not in blocks and torch.equal(one, two) and error(one, first) < 1e-12
