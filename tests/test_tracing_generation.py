"""Random edits and reads at random steps, several prompts in one generate, against a loop written out."""

import random
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from families import PLAIN, error, folder, ids, ours, prompt
from nnzoo import Graph, LanguageModel
from nnzoo.tracing.recorder import TraceError

ENDS = [
    "hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post", "attn.hook_z",
    "attn.hook_q", "attn.hook_k", "attn.hook_v", "mlp.hook_post", "ln1.hook_out", "attn.hook_pattern",
    "attn.hook_attn_scores",
]  # fmt: skip
PLACES = ["hook_embed", *(f"blocks.{i}.{end}" for i in range(3) for end in ENDS), "ln_final.hook_out"]
CHANGES = [lambda v: v * 1.3, lambda v: v * 0.5 + 0.1, lambda v: torch.cat([v[..., :1] * 2, v[..., 1:]], dim=-1)]
RESID = "blocks.1.hook_resid_post"


@cache
def traced(family: str, setting: str) -> LanguageModel:
    return LanguageModel(folder(family, setting))


@dataclass
class Body:
    """What is done in one invoke at each step: which places change, which are read, and how steps are addressed."""

    tokens: Tensor
    changes: list[dict[str, int]]
    reads: list[list[str]]
    style: str
    order: list[int]

    @classmethod
    def draw(cls, chance: random.Random, n_steps: int) -> "Body":
        steps = range(n_steps)
        return cls(
            torch.randint(2, 97, (chance.randint(1, 2), chance.randint(1, 9))),
            [{chance.choice(PLACES): chance.randrange(3) for _ in range(chance.randint(0, 2))} for _ in steps],
            [[chance.choice(PLACES) for _ in range(chance.randint(0, 2))] for _ in steps],
            chance.choice(["for", "next", "with"]),
            chance.sample(steps, n_steps),
        )

    def trace(self, tracer: Any) -> tuple[Tensor, dict[tuple[int, str], Tensor]]:
        """The ids, and what was read by step and place."""
        values: dict[tuple[int, str], Tensor] = {}

        def at(step: int) -> None:
            for place, change in self.changes[step].items():
                tracer.put(place, CHANGES[change](tracer.read(place)))
            values.update({(step, place): tracer.read(place) for place in self.reads[step]})

        if self.style == "for":
            for step in tracer.iter[:]:
                at(step)
        elif self.style == "next":
            for step in range(len(self.reads)):
                at(step)
                if step < len(self.reads) - 1:
                    tracer.next()
        else:
            for step in self.order:
                with tracer.iter[step]:
                    at(step)
        return tracer.result, values


def alone(model: Any, body: Body) -> tuple[Tensor, dict[tuple[int, str], Tensor]]:
    """The same by a loop: blocks are called one by one, and token 1, the end of text, is never chosen."""
    values: dict[tuple[int, str], Tensor] = {}
    cache, tokens, total = model.new_cache(), body.tokens, body.tokens
    for step, (changes, reads) in enumerate(zip(body.changes, body.reads, strict=True)):
        hooks: list = [(place, lambda v, hook, c=c: CHANGES[c](v)) for place, c in changes.items()]
        hooks += [(p, lambda v, hook, n=step: values.__setitem__((n, hook.name), v.clone())) for p in reads]
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            x, span = model.begin(tokens, None, cache)
            for block in model.blocks:
                x = block(x, span)
            logits = model.unembed(model.ln_final(x))[:, -1].clone()
        logits[:, 1] = -torch.inf
        tokens = logits.argmax(dim=-1, keepdim=True)
        total = torch.cat([total, tokens], dim=1)
    return total, values


@ids(PLAIN)
@pytest.mark.parametrize("seed", range(6))
def test_steps_are_those_of_each_prompt_alone(family: str, setting: str, seed: int) -> None:
    torch.manual_seed(seed)
    chance = random.Random(seed)
    n_steps = chance.randint(1, 5)
    bodies = [Body.draw(chance, n_steps) for _ in range(chance.randint(1, 3))]
    got = []
    with traced(family, setting).generate(max_new_tokens=n_steps, min_new_tokens=n_steps) as tracer:
        for body in bodies:
            with tracer.invoke(body.tokens):
                got.append(body.trace(tracer))
    for body, (total, values) in zip(bodies, got, strict=True):
        expected, theirs = alone(ours(family, setting), body)
        assert torch.equal(total, expected), body
        for key, value in values.items():
            assert error(value, theirs[key]) < 1e-8, (body, key)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return traced("gpt2", "default")


@pytest.fixture(scope="module")
def end(model: LanguageModel) -> int:
    """A token that the first prompt chooses at step 5 for the first time, and the second never."""
    return (model.generate(prompt(1, 6), max_new_tokens=8, min_new_tokens=8) + 0)[0, 11].item()


class TestEarlyEnds:
    def test_each_prompt_ends_as_it_does_alone(self, model: LanguageModel, end: int) -> None:
        prompts = [prompt(1, 6), prompt(1, 4) + 3]
        options = {"max_new_tokens": 8, "eos_token_id": end}
        totals, steps = [], []
        with model.generate(**options) as tracer:
            for one in prompts:
                with tracer.invoke(one):
                    steps.append([model.output[:, -1] for _ in tracer.iter[:]])
                    totals.append(tracer.result)
        assert [len(one) for one in steps] == [6, 8]
        for total, one in zip(totals, prompts, strict=True):
            assert torch.equal(total, model.generate(one, **options) + 0)

    @pytest.mark.parametrize("shortest", [0, 8], ids=["one ends", "none ends"])
    def test_the_whole_batch_has_its_ids_as_a_list_of_prompts_has(
        self, model: LanguageModel, end: int, shortest: int
    ) -> None:
        prompts = [prompt(1, 6), prompt(1, 4) + 3, prompt(2, 3)]
        options = {"max_new_tokens": 8, "eos_token_id": end, "pad_token_id": 1, "min_new_tokens": shortest}
        with model.generate(**options) as tracer:
            for one in prompts:
                with tracer.invoke(one):
                    pass
            with tracer.invoke():
                ids = tracer.result.save()
            graph = tracer.graph
        expected = model.generate([row.tolist() for one in prompts for row in one], **options) + 0
        assert torch.equal(ids[:, -8:], expected[:, -8:]) and (ids == end).any() == (shortest == 0)
        assert (ids[1:, :2] == 1).all() and torch.equal(ids[:1, :6], prompts[0]) and ids.shape == (4, 14)
        (again,) = Graph.from_bytes(graph.to_bytes()).run(model).values()
        assert torch.equal(ids, again)

    def test_a_step_that_was_never_made_says_so(self, model: LanguageModel, end: int) -> None:
        with model.generate(max_new_tokens=8, eos_token_id=end) as tracer:
            with tracer.invoke(prompt(1, 6)):
                tracer.next(7)
                logits = model.output
            with tracer.invoke(prompt(1, 4) + 3):
                other = model.output
        assert other.isfinite().all()
        with pytest.raises(RuntimeError, match="never computed"):
            logits + 1


def test_a_value_of_a_later_step_of_one_prompt_in_an_earlier_step_of_another() -> None:
    model = traced("gpt2", "default")
    with model.generate(max_new_tokens=3, min_new_tokens=3) as tracer:
        with tracer.invoke(prompt(1, 6)), tracer.iter[1]:
            late = tracer.read(RESID)
        with tracer.invoke(prompt(1, 4)):
            tracer.read("blocks.0.hook_resid_post")[:, -1] = late[:, -1]
            total = tracer.result

    def put(value: Tensor, hook: Any) -> Tensor:
        return torch.cat([value[:, :-1], late], dim=1)

    body = Body(prompt(1, 6), [{}] * 3, [[], [RESID], []], "for", [])
    assert error(late, alone(ours("gpt2", "default"), body)[1][1, RESID]) < 1e-9
    with torch.no_grad():
        logits = ours("gpt2", "default").run_with_hooks(prompt(1, 4), fwd_hooks=[("blocks.0.hook_resid_post", put)])
    logits[..., 1] = -torch.inf
    assert total[0, 4] == logits[0, -1].argmax()


def test_a_list_of_steps_ends_where_the_text_ends() -> None:
    model = LanguageModel("nnzoo/tiny-gpt2")
    with model.generate("The capital of France is", max_new_tokens=6) as tracer:
        with tracer.iter[:]:
            tokens = model.lm_head.output[0, -1].argmax().save()
        ids = tracer.result
    assert [int(token) for token in tokens] == ids[0, -3:].tolist(), "Paris, full stop, end of text"


def test_a_traced_generation_draws_what_a_plain_one_draws_and_torch_goes_on() -> None:
    model = LanguageModel(folder("gpt2", "default"))
    tokens = prompt(1, 5)
    torch.manual_seed(5)
    expected = [model.generate(tokens, max_new_tokens=6, do_sample=True).clone() for _ in range(2)]
    torch.manual_seed(5)
    found = []
    for _ in expected:
        with model.generate(tokens, max_new_tokens=6, do_sample=True) as tracer:
            found.append(tracer.result)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(*expected), "the second draws other numbers"


@pytest.mark.parametrize(
    ("steps", "made", "said"),
    [
        (slice(3), [0], "1 of 3 steps .*only a generation has more"),
        (slice(1, None), [], "0 of 1 steps .*only a generation has more"),
        (slice(0, 5), [0, 1], "2 of 5 steps .*the generation has 2 steps"),
        (slice(None), [0, 1], None),
        (slice(-1, None), [1], None),
    ],
)
def test_a_loop_over_more_steps_than_there_are_says_so(steps: slice, made: list[int], said: str | None) -> None:
    model, found = traced("gpt2", "default"), []
    in_generation = said is None or "2 steps" in said
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with model.generate(prompt(1, 4), max_new_tokens=2) if in_generation else model.trace(prompt(1, 4)) as tracer:
            found += list(tracer.iter[steps])
    assert found == made
    assert [re.search(said, str(one.message)) is not None for one in caught] == ([] if said is None else [True])
    assert all(one.filename == __file__ for one in caught)


@pytest.mark.parametrize("use", [lambda s: s == 1, bool, lambda s: s > 0, lambda s: [0, 1][s], lambda s: {s: 1}, int])
def test_the_number_of_a_step_is_refused_where_the_body_runs_once_for_several(use: Callable[[Any], Any]) -> None:
    model = traced(*PLAIN[0])
    with pytest.raises(TraceError, match=r"once for steps 0, 1, so .*`for step in tracer"):
        with model.generate(prompt(1, 6), max_new_tokens=2) as tracer, tracer.iter[:] as step:
            use(step)
    with model.generate(prompt(1, 6), max_new_tokens=2) as tracer, tracer.iter[1] as step:
        assert use(step) is not None and step == 1


def test_a_trace_without_the_cache_is_warned_of_where_its_values_would_be_others() -> None:
    model, tokens = traced(*PLAIN[0]), prompt(1, 6)
    asked: dict[str, Any] = {"max_new_tokens": 2, "use_cache": False}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert model.generate(tokens, **asked).shape == (1, 8) and not caught
        with model.generate(tokens, **asked):
            pass
        with model.generate(**asked) as tracer, tracer.invoke(tokens):
            pass
        with model.trace(tokens):
            model.generate(**asked)
    assert len(caught) == 3
    assert all("use_cache=False has no effect in a trace: each step after" in str(one.message) for one in caught)


def test_a_prompt_that_ends_with_padding_is_warned_of() -> None:
    model, mask = traced(*PLAIN[0]), torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    for one, n_said in ((mask, 0), (mask.flip(1), 1)):
        table = {"input_ids": prompt(2, 4), "attention_mask": one}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert model.generate(table, max_new_tokens=2).shape == (2, 6)
        assert len(caught) == n_said and all("ends with padding" in str(said.message) for said in caught)
