"""Prompts that need each other's values from any layer to any layer: their passes take turns."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from families import PLAIN, error, ids, prompt
from nnzoo import LanguageModel
from nnzoo.tracing.recorder import TraceError
from test_tracing_invokes import check, traced, truth
from trace_programs import Asked, Program, Statement

A, B = prompt(1, 6), prompt(1, 6) + 1


@contextmanager
def counted(model: LanguageModel) -> Iterator[Counter]:
    """How often each block runs."""
    calls: Counter[int] = Counter()
    handles = [
        block.register_forward_pre_hook(lambda *_, n=n: calls.update([n]))
        for n, block in enumerate(model._model.blocks)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def model_of_twice(model: LanguageModel) -> Tensor:
    """The last block's output where the first one's is doubled."""
    values: list[Tensor] = []
    model._model.run_with_hooks(
        A,
        fwd_hooks=[
            ("blocks.0.hook_resid_post", lambda value, hook: value * 2),
            ("blocks.2.hook_resid_post", lambda value, hook: values.append(value.detach())),
        ],
    )
    return values[0]


@ids(PLAIN)
@pytest.mark.parametrize("max_batch", [None, 1])
@pytest.mark.parametrize("hook", ["hook_resid_post", "hook_mlp_out", "attn.hook_pattern"])
def test_each_of_two_prompts_takes_from_the_other_at_a_later_layer(
    family: str, setting: str, hook: str, max_batch: int | None
) -> None:
    names = truth(family, setting).places
    first, second = names.index("blocks.0.hook_resid_post"), names.index("blocks.1.hook_resid_post")
    start = names.index("blocks.1.hook_resid_pre")  # changed before its block stops, and not a second time
    low, high = names.index(f"blocks.1.{hook}"), names.index(f"blocks.2.{hook}")
    program = Program(
        (Asked(1, 6, ""), Asked(2, 4, "left")),
        (
            (0, (Statement("read", second),)),
            (1, (Statement("read", first), Statement("read", start), Statement("scale", 2), Statement("put", 0, low))),
            (0, (Statement("put", 1, high),)),
        ),
    )
    assert truth(family, setting).circle(program) is None
    check(family, setting, program, set(), max_batch)


@ids(PLAIN)
def test_prompts_whose_values_go_up_by_turns(family: str, setting: str) -> None:
    """Each place of one is set from the place before it of the other: alone, neither runs two blocks in a row."""
    names = truth(family, setting).places
    ends = [names.index(n) for n in names if n.endswith(("hook_attn_out", "hook_mlp_out", "hook_resid_post"))]
    bodies = [(0, (Statement("read", ends[0]),)), (1, ())]
    for n, end in enumerate(ends[1:]):
        bodies.append(((n + 1) % 2, (Statement("put", n, end), Statement("read", end))))
    program = Program((Asked(1, 5, ""), Asked(1, 3, "")), tuple(bodies))
    for max_batch in (None, 1):
        check(family, setting, program, set(), max_batch)


def test_a_circle_is_refused_at_its_line_and_both_places_are_named() -> None:
    model = traced("gpt2", "default")
    with (
        pytest.raises(
            TraceError,
            match=r"blocks.2.hook_mlp_out of invoke 0 cannot be set from blocks.1.hook_resid_post of invoke 1, which "
            r"needs blocks.2.hook_resid_post of invoke 0 first, and that comes later",
        ),
        model.trace() as tracer,
    ):
        with tracer.invoke(A):
            middle, late = model.transformer.h[2].mlp.output, model.transformer.h[2].output[0]
        with tracer.invoke(B):
            model.transformer.h[0].output[0][:] = late
            middle[:] = model.transformer.h[1].output[0]


def test_what_was_put_and_replaced_stands_in_nobodys_way() -> None:
    model = traced("gpt2", "default")
    with model.trace() as tracer:
        with tracer.invoke(A):
            middle, late = model.transformer.h[2].mlp.output, model.transformer.h[2].output[0]
        with tracer.invoke(B):
            tracer.put("blocks.0.hook_resid_post", late)
            tracer.put("blocks.0.hook_resid_post", torch.zeros_like(late))
            middle[:] = model.transformer.h[1].output[0]
            replaced = model.transformer.h[0].output[0]
    assert (replaced == 0).all()
    assert not (middle == 0).any()


def test_gradients_flow_through_passes_that_take_turns() -> None:
    model = traced("gpt2", "default")
    weights = torch.linspace(-1, 1, 48, dtype=torch.float64)

    def loss_of(shift: torch.Tensor, *, grad: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        with model.trace() as tracer:
            with tracer.invoke(A):
                first = model.transformer.h[0].output[0]
                first[:] += shift
                late, last = model.transformer.h[1].output[0], model.transformer.h[2].mlp.output
            with tracer.invoke(B):
                early = model.transformer.h[0].output[0]
                model.transformer.h[1].mlp.output[:] = late
                last[:] = early + late
                end = model.transformer.h[2].output[0]
            loss = (end * weights).sum() + (last * weights).cos().sum()
            flowing = None
            if grad:
                loss.backward()
                flowing = first.grad
        return loss.detach(), flowing

    shift = torch.zeros(1, 6, 48, dtype=torch.float64)
    _, gradient = loss_of(shift, grad=True)
    direction = torch.linspace(-1, 1, shift.numel(), dtype=torch.float64).reshape(shift.shape)
    step = 1e-5 * direction
    slope = (loss_of(shift + step, grad=False)[0] - loss_of(shift - step, grad=False)[0]) / 2e-5
    assert gradient is not None
    assert error((gradient * direction).sum(), slope) < 1e-6 * slope.abs().clamp(min=1)


HALFWAY = ["hook_embed", "blocks.1.attn.hook_q", "blocks.1.hook_resid_post", "ln_final.hook_normalized"]
LATE = "blocks.2.hook_resid_post"


@ids(PLAIN)
@pytest.mark.parametrize("hook", [*HALFWAY, "unembed.hook_out"])
def test_generations_take_turns_in_the_middle_of_their_steps(family: str, setting: str, hook: str) -> None:
    model = traced(family, setting)
    options = {"max_new_tokens": 3, "min_new_tokens": 3}
    with model.generate(**options) as tracer:
        with tracer.invoke(A):
            first = tracer.read(LATE).mean()
            with tracer.iter[1]:
                there = tracer.read(hook)
            ours = tracer.result
        with tracer.invoke(B):
            tracer.read(hook)[:] += first
            with tracer.iter[2]:
                last = tracer.read(LATE).mean()
            there[:] += last
            others = tracer.result
    with model.generate(A, **options) as tracer:
        first_alone = tracer.read(LATE).mean()
    with model.generate(B, **options) as tracer:
        tracer.read(hook)[:] += first_alone
        with tracer.iter[2]:
            last_alone = tracer.read(LATE).mean()
        others_alone = tracer.result
    with model.generate(A, **options) as tracer:
        with tracer.iter[1]:
            there_alone = tracer.read(hook)
            there_alone[:] += last_alone
        ours_alone = tracer.result
    assert torch.equal(ours, ours_alone)
    assert torch.equal(others, others_alone)
    assert error(there, there_alone) < 1e-9


class TestLooks:
    """What a look has computed is not computed again."""

    @pytest.mark.local("it counts the blocks that are computed, and each look is a request of its own")
    def test_looks_at_several_prompts_by_turns_compute_each_block_once(self) -> None:
        model = traced("gpt2", "default")
        with counted(model) as calls, model.trace() as tracer:
            with tracer.invoke(A):
                ours = [model.transformer.h[k].output[0] for k in range(3)]
            with tracer.invoke(B):
                model.transformer.h[0].output[0][:] = ours[2]
                others = [model.transformer.h[k].output[0] for k in range(3)]
            for k in (0, 1, 2):
                assert ours[k].norm().item() > 0
                assert others[0].norm().item() > 0 or k < 2
            for k in (1, 2):
                assert others[k].norm().item() > 0
                assert ours[k].norm().item() > 0
        assert calls == {0: 2, 1: 2, 2: 2}

    @pytest.mark.local("it counts the blocks that are computed, and each look is a request of its own")
    def test_a_value_put_where_the_look_stopped_is_gone_on_with(self) -> None:
        model = traced("gpt2", "default")
        with counted(model) as calls, model.trace(A):
            for k in range(3):
                hidden = model.transformer.h[k].output[0]
                if hidden.norm() > 0:
                    model.transformer.h[k].output = (hidden * 0.5,)
            logits = model.output
        assert calls == {0: 1, 1: 1, 2: 1}
        with model.trace(A):
            for k in range(3):
                model.transformer.h[k].output = (model.transformer.h[k].output[0] * 0.5,)
            expected = model.output
        assert error(logits, expected) < 1e-12

    def test_prompts_that_were_looked_at_one_by_one_still_run_as_one_batch(self) -> None:
        model = traced("gpt2", "default")
        with counted(model) as calls, model.trace() as tracer:
            held = []
            for n in range(4):
                with tracer.invoke(prompt(1, 3 + n)):
                    assert model.transformer.h[0].output[0].norm().item() > 0
                    held.append(model.output)
        assert calls == {0: 5, 1: 1, 2: 1}
        assert [one.shape[1] for one in held] == [3, 4, 5, 6]

    def test_an_intervention_below_a_look_takes_the_pass_back(self) -> None:
        model = traced("gpt2", "default")
        with model.trace() as tracer:
            with tracer.invoke(A):
                below, ours = model.transformer.h[0].output[0], model.transformer.h[2].output[0]
            with tracer.invoke(B):
                model.transformer.h[0].output[0][:] = ours
                others = model.transformer.h[1].output[0]
            seen = others.norm().item()
            below[:] *= 2
            now = others.norm().item()
        assert abs(now - seen) > 1e-6
        assert abs(others.norm().item() - now) < 1e-9
        assert error(ours, model_of_twice(model)) < 1e-9


def test_the_printed_plan_says_who_waits_where() -> None:
    model = traced("gpt2", "default")
    with model.trace() as tracer:
        with tracer.invoke(A):
            late, middle = model.transformer.h[1].output[0], model.transformer.h[2].mlp.output
        with tracer.invoke(B):
            early = model.transformer.h[0].output[0]
            model.transformer.h[1].mlp.output[:] = late
            middle[:] = early
            end = model.output.save()
        graph = tracer.graph
    text = str(graph).partition("passes:\n")[2].splitlines()
    assert [line for line in text if line[2].isdigit()] == [
        "  1. invoke 1 [1 row, 6 tokens]: blocks 0 to 1 of 0 to 2; waits at transformer.h[1].mlp.output "
        "(blocks.1.hook_mlp_out)",
        "  2. invoke 0 [1 row, 6 tokens]: blocks 0 to 2 of 0 to 2; stops at transformer.h[2].mlp.output "
        "(blocks.2.hook_mlp_out)",
        "  3. invoke 1 [1 row, 6 tokens] goes on from transformer.h[1].mlp.output (blocks.1.hook_mlp_out): blocks 1 to "
        "2 of 0 to 2, the logits; stops at lm_head.output (unembed.hook_out)",
    ]
    assert "invoke 1, passes 1, 3" in graph.to_html()
    assert end.shape == (1, 6, 97)


def test_two_hundred_prompts_in_turns_share_two_batches() -> None:
    model = traced("gpt2", "default")
    with counted(model) as calls, model.trace() as tracer:
        kept = []
        for n in range(100):
            with tracer.invoke(prompt(1, 3) + n % 7):
                late, middle = model.transformer.h[1].output[0], model.transformer.h[2].mlp.output
            with tracer.invoke(prompt(1, 3)):
                early = model.transformer.h[0].output[0]
                model.transformer.h[1].mlp.output[:] = late
                middle[:] = early
                kept.append(model.output[:, -1])
    assert len(kept) == 100
    assert calls[0] == 2
    assert calls[1] == 3, "the block in which one batch waits runs again"


@pytest.mark.parametrize("between", [True, False], ids=["read in between", "not read"])
def test_what_was_put_is_the_bodys_own_memory_and_may_go_lower_when_it_is_edited(between: bool):
    family, setting = "gpt2", dict(PLAIN)["gpt2"]
    low, high = (truth(family, setting).places.index(f"blocks.{n}.hook_attn_out") for n in (0, 2))
    body = [Statement("read", low), Statement("square", 0), Statement("put", 1, high)]
    body += [Statement("read", high), Statement("clone", 2)] * between  # as it is before the edit
    body += [Statement("scale", 1), Statement("set_row", 0, 1)]
    program = Program((Asked(1, 6, ""),), ((0, tuple(body)),))
    check(family, setting, program, set(), None)
    check(family, setting, program, {1}, None)
