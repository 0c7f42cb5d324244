"""Nothing runs for nobody, and what nobody holds is freed."""

import gc
import io
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from families import error, folder, prompt
from first_traces import TOKENS, plain_values, resid
from nnzoo import LanguageModel


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(folder("gpt2", "default"))


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    return plain_values()


class TestCost:
    def count_blocks(self, model: LanguageModel) -> list[int]:
        calls: list[int] = []
        for i, block in enumerate(model._model.blocks):
            block.register_forward_pre_hook(lambda *_, i=i: calls.append(i))
        return calls

    def test_the_pass_stops_after_the_last_place_asked_for(self) -> None:
        model = LanguageModel(folder("gpt2", "default"))
        calls = self.count_blocks(model)
        with model.trace(TOKENS):
            hidden = model.transformer.h[1].output[0]
        assert calls == [0, 1]
        assert hidden.isfinite().all()

    def test_what_nobody_holds_is_not_computed(self) -> None:
        model = LanguageModel(folder("gpt2", "default"))
        calls = self.count_blocks(model)
        with model.trace(TOKENS):
            model.transformer.h[2].output[0].mean()
            model.transformer.h[0].output[0][:] = 0
        assert calls == []

    def test_fused_attention_runs_where_nobody_looks_at_a_pattern(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = LanguageModel(folder("gpt2", "default"))
        fused, calls = F.scaled_dot_product_attention, []
        model.dispatch()
        monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k))
        with model.trace(TOKENS):
            pattern = model.transformer.h[1].attn.output[1].save()
            logits = model.output
        assert len(calls) == 2  # of three layers
        assert torch.allclose(pattern.sum(-1), torch.ones(()).double()) and logits.isfinite().all()

    @pytest.mark.local("it counts the tensors that are alive in a run here")
    def test_values_are_freed_as_soon_as_nothing_needs_them(self, model: LanguageModel) -> None:
        alive: list[int] = []

        class Count(TorchFunctionMode):
            def __torch_function__(self, fn: object, types: object, args: tuple = (), kwargs: dict | None = None):
                if fn is torch.Tensor.cumsum:
                    alive.append(
                        sum(type(o) is Tensor and not o.is_meta and o.shape == (2, 9, 7) for o in gc.get_objects())
                    )
                return fn(*args, **(kwargs or {}))

        weight = torch.rand(48, 7).double()
        with model.trace(TOKENS):
            total = sum((model.transformer.h[i].output[0] @ weight).cumsum(0).sum() for i in range(3))
            with_mode = Count()
            with_mode.__enter__()
        with_mode.__exit__(None, None, None)
        assert total.isfinite() and len(alive) == 3
        assert max(alive) <= 1, "only the operand of the moment is alive"

    def test_no_autograd_graph_is_kept_unless_something_asks(self, model: LanguageModel) -> None:
        probe = torch.rand(48, requires_grad=True, dtype=torch.float64)
        with model.trace(TOKENS):
            hidden = model.transformer.h[1].output[0]
        assert not hidden.requires_grad
        with model.trace(TOKENS):
            score = (model.transformer.h[1].output[0] @ probe).sum()
        score.backward()
        assert probe.grad is not None

    def test_no_graph_is_kept_where_the_user_wants_none(self, model: LanguageModel) -> None:
        probe = torch.rand(48, requires_grad=True, dtype=torch.float64)
        with torch.no_grad(), model.trace(TOKENS):
            score = (model.transformer.h[1].output[0] @ probe).sum()
        assert not score.requires_grad

    def test_a_trace_lets_go_of_the_tensors_it_was_given(self, model: LanguageModel) -> None:
        weight = torch.rand(48, 7).double()
        gc.collect()
        gc.disable()
        try:
            with model.trace(TOKENS):
                product = model.transformer.h[0].output[0] @ weight
            gone = weakref.ref(weight)
            del weight
            assert gone() is None
        finally:
            gc.enable()
        assert product.shape == (2, 9, 7)

    def test_threads_keep_to_their_own_prompts(self, model: LanguageModel) -> None:
        prompts = [prompt(1, 5 + i) for i in range(4)]

        def look(tokens: Tensor) -> tuple[Tensor, Tensor]:
            with model.trace(tokens):
                hidden = model.transformer.h[1].output[0]
            return hidden, model.generate(tokens, max_new_tokens=3)

        alone = [look(tokens) for tokens in prompts]
        with ThreadPoolExecutor(4) as threads:
            together = list(threads.map(look, prompts * 5))
        for i, (hidden, generated) in enumerate(together):
            assert torch.equal(hidden, alone[i % 4][0]) and torch.equal(generated, alone[i % 4][1])

    def test_what_is_stored_inside_the_body_has_its_numbers(self, model: LanguageModel, plain: dict) -> None:
        with model.trace(TOKENS):
            file = io.BytesIO()
            torch.save(model.transformer.h[0].output[0], file)
        file.seek(0)
        assert error(torch.load(file), plain[resid(0)]) < 1e-12
