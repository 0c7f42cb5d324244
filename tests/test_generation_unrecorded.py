"""Where steps are not recorded, where a recording fails, and what only a CUDA device can tell."""

import copy
from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from families import PLAIN, error, ids, ours
from nnzoo.generation.cuda_graphs import RECORDERS
from nnzoo.generation.recorded import WORTH, recorded
from recorded_steps import NEW, PADDED, TOKENS, agree, decoded, listened, plainly
from tape import record as tape
from tape import taped

# --- where nothing is recorded ------------------------------------------------------------------------------------


def fails(device: torch.device) -> Callable:
    def record(work: Callable[[], Tensor]) -> None:
        work()
        raise RuntimeError("CUDA error: out of graphs")

    return record


def wrong(device: torch.device) -> Callable:
    def other(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        replay, output = tape(work)
        return lambda: (replay(), output.mul_(1.1)), output

    return other


@pytest.mark.parametrize(("recorder", "why"), [(fails, "out of graphs"), (wrong, "other numbers, off by")])
def test_a_recording_that_fails_is_warned_of_and_does_without(recorder, why):
    model = ours("mistral", "window=7")
    usual = plainly(decoded, model, mask=PADDED)
    with patch.dict(RECORDERS, {"cpu": recorder}), pytest.warns(UserWarning, match=why) as caught:
        agree(decoded(model, mask=PADDED), usual, tolerance=1e-12)
    assert len(caught) == 1 and caught[0].filename == decoded.__code__.co_filename


def test_a_step_that_waits_for_the_device_cannot_be_recorded():
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        tape(lambda: torch.ones(3) * torch.ones(3).sum().item())


@pytest.mark.parametrize(
    "mode",
    [torch.enable_grad, lambda: torch.autocast("cpu", dtype=torch.bfloat16), lambda: FlopCounterMode(display=False)],
    ids=["gradients", "autocast", "mode"],
)
def test_nothing_is_recorded_under_what_follows_operations(mode):
    model = ours("gpt2", "default")
    with taped() as tapes, torch.no_grad(), mode():
        cache, tokens = model.new_cache(), TOKENS
        steps = recorded(model, cache, NEW)
        for _ in range(5):
            tokens = steps.next_logits(model, tokens, None, cache).argmax(dim=-1)[:, None]
        assert cache.length == 14 and not tapes.made


def test_a_default_device_is_no_reason_to_record_nothing():
    with taped() as tapes, torch.device("cpu"):
        decoded(ours("gpt2", "default"))
    assert tapes.made == 1


def test_a_short_text_is_not_worth_a_recording():
    with taped() as tapes:
        decoded(ours("gpt2", "default"), max_new_tokens=WORTH - 1)
        assert not tapes.made
        decoded(ours("gpt2", "default"), max_new_tokens=WORTH)
        assert tapes.made == 1


def test_without_a_recorder_nothing_is_asked():
    model = copy.deepcopy(ours("gpt2", "default")).to("meta")
    assert set(RECORDERS) == {"cuda"}
    assert recorded(model, model.new_cache(), NEW) is None


# --- the device itself --------------------------------------------------------------------------------------------

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@needs_cuda
@ids(PLAIN)
@pytest.mark.parametrize("mask", [None, PADDED], ids=["whole", "padded"])
@pytest.mark.parametrize("places", [[], ["blocks.1.attn.hook_pattern"]], ids=str)
def test_cuda_graphs_give_the_usual_steps(family, setting, mask, places, recwarn):
    model = copy.deepcopy(ours(family, setting)).cuda()
    mask = None if mask is None else mask.cuda()
    with patch.dict(RECORDERS, clear=True):
        usual, expected = plainly(listened, model, places, tokens=TOKENS.cuda(), mask=mask)
    found, heard = listened(model, places, tokens=TOKENS.cuda(), mask=mask)
    agree(found, usual)
    assert all(error(a, b) < 1e-6 for (_, a), (_, b) in zip(heard, expected, strict=True))
    assert not [one for one in recwarn if "one kernel after the other" in str(one.message)]


@needs_cuda
def test_the_memory_of_graphs_goes_with_the_generation():
    model = copy.deepcopy(ours("gpt2", "default")).cuda()
    decoded(model, TOKENS.cuda())
    before = torch.cuda.memory_allocated()
    decoded(model, TOKENS.cuda())
    assert torch.cuda.memory_allocated() == before
