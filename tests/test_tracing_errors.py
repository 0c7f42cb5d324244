"""Prompts and errors of a trace: each says what was asked, where, and what to do."""

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from families import error, folder, in_full
from first_traces import TOKENS, plain_values
from nnzoo import LanguageModel
from nnzoo.tracing.places import Places
from nnzoo.tracing.recorder import TraceError


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(folder("gpt2", "default"))


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    return plain_values()


ROWS = [[0, 0, 5, 6], [1, 2, 3, 4]]
MASK = [[0, 0, 1, 1], [1, 1, 1, 1]]


class TestPrompts:
    def test_a_tokenizers_dict_brings_its_mask(self, model: LanguageModel) -> None:
        logits = model(torch.tensor([[5, 6]]))
        for ask in (
            {"input_ids": ROWS, "attention_mask": MASK},
            {"input_ids": torch.tensor(ROWS), "attention_mask": torch.tensor(MASK)},
        ):
            with model.trace(ask):
                padded = model.output
            assert error(padded[:1, 2:], logits) < 1e-12

    def test_rows_of_different_length_are_padded(self, model: LanguageModel) -> None:
        with model.trace([[5, 6], [1, 2, 3, 4]]):
            padded = model.output
        assert error(padded[:1, 2:], model([5, 6])) < 1e-12

    def test_what_a_prompt_cannot_have_is_refused(self, model: LanguageModel) -> None:
        with pytest.raises(ValueError, match="position_ids"):
            model.trace({"input_ids": ROWS, "position_ids": MASK})
        with pytest.raises(ValueError, match="no attention_mask"):
            model.trace([[5, 6], [1, 2, 3]], attention_mask=torch.ones(2, 3))


class TestErrors:
    def test_a_weak_reference_spoils_only_its_own_value(self, model: LanguageModel) -> None:
        with pytest.raises(TraceError, match="weak references"), model.trace(TOKENS):
            one, other = model.transformer.h[0].output[0], model.transformer.h[1].output[0]
            reference = weakref.ref(one)
        assert type(other) is Tensor and reference() is one

    def test_autocast_holds_for_the_lines_inside_it(self, model: LanguageModel, plain: dict) -> None:
        weight = torch.rand(48, 5)
        with model.trace(TOKENS):
            single = model.transformer.h[0].output[0].float()
            with torch.autocast("cpu", torch.bfloat16):
                cast = single @ weight
                assert cast.dtype == torch.bfloat16
            wide = single @ weight
        with torch.autocast("cpu", torch.bfloat16):
            expected = single @ weight
        assert torch.equal(cast, expected) and wide.dtype == torch.float32

    def test_an_error_in_the_body_leaves_model_and_values_clean(self, model: LanguageModel) -> None:
        with pytest.raises(ZeroDivisionError), model.trace(TOKENS):
            hidden = model.transformer.h[0].output[0]
            1 / 0
        with pytest.raises(TraceError, match="never computed"):
            hidden + 1
        with model.trace(TOKENS):
            again = model.transformer.h[0].output[0]
        assert again.isfinite().all()

    @pytest.mark.parametrize(
        "ask",
        [
            lambda model: model.transformer.h[0].mpl.output,
            lambda model: model.transformer.h[9],
            lambda model: model.transformer.h[0].output[:, -1],
            lambda model: model.transformer.h[0].output[0] @ torch.zeros(2, 2),
            lambda model: model.transformer.h[0].output[0].copy_(model.transformer.h[1].output[0]),
            lambda model: setattr(model.transformer.h[0].mlp, "output", torch.zeros(1)),
            lambda model: torch.nn.Linear(3, 3)(model.transformer.h[0].output[0]),
            lambda model: torch.linalg.cholesky(-model.transformer.h[0].output[0][:, :5, :5]).sum().item(),
        ],
        ids=["path", "block", "convention", "shape", "order", "hook", "module", "look"],
    )
    def test_its_traceback_ends_at_the_users_line(self, model: LanguageModel, ask: Callable) -> None:
        with (
            pytest.raises((AttributeError, IndexError, TypeError, ValueError, RuntimeError)) as raised,
            model.trace(TOKENS),
        ):
            ask(model)
        last = raised.traceback[-1]
        assert (str(last.path), last.name) == (__file__, "<lambda>")

    def test_a_mistake_of_ours_is_shown_whole(self, model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: object) -> None:
            raise AssertionError

        monkeypatch.setattr(Places, "read", fail)
        with pytest.raises(AssertionError) as raised, model.trace(TOKENS):
            model.transformer.h[0].output
        assert raised.traceback[-1].name == "fail"

    def test_values_outside_a_trace_say_how_to_begin_one(self, model: LanguageModel) -> None:
        with pytest.raises(TraceError, match=r"with model\.trace"):
            _ = model.transformer.h[0].output

    def test_a_misspelt_module_names_the_nearest(self, model: LanguageModel) -> None:
        with pytest.raises(AttributeError, match="did you mean attn"):
            _ = model.transformer.h[0].atn
        with pytest.raises(IndexError):
            _ = model.transformer.h[3]

    def test_the_tuple_convention_names_the_switch(self, model: LanguageModel) -> None:
        with pytest.raises(TypeError, match='block_output="tensor"'), model.trace(TOKENS):
            _ = model.transformer.h[0].output[:, -1]

    @pytest.mark.parametrize(
        "idiom",
        [
            lambda h: h.output.__setitem__(slice(None), 0),
            lambda h: h.output.__setitem__((0, -1), 0),
            lambda h: h.output * 2,
            lambda h: h.output + torch.ones(48),
            lambda h: h.output.mean(-1),
        ],
    )
    def test_every_idiom_of_tensors_names_the_switch(self, model: LanguageModel, idiom: Callable) -> None:
        with pytest.raises(TypeError, match=r"tuple here.*block_output=.tensor"), model.trace(TOKENS):
            idiom(model.transformer.h[0])

    def test_the_idiom_of_tuples_names_the_switch(self) -> None:
        bare = LanguageModel(folder("gpt2", "default"), block_output="tensor")
        with pytest.raises(IndexError) as raised, bare.trace(TOKENS):
            bare.transformer.h[0].output[0][:, -1, :]
        assert 'block_output="tensor"' in in_full(raised.value)

    def test_a_value_that_an_output_has_not_is_counted(self, model: LanguageModel) -> None:
        with pytest.raises(IndexError, match=r"h\.0\.output is a tuple of 1: .*\[1\]"), model.trace(TOKENS):
            model.transformer.h[0].output[1]

    def test_a_block_that_is_not_there_is_counted(self, model: LanguageModel) -> None:
        with pytest.raises(IndexError, match=r"3 blocks \(0 to 2\), not 9"):
            _ = model.transformer.h[9]

    def test_weights_have_their_hugging_face_names(self, model: LanguageModel) -> None:
        assert model.lm_head.weight is model._model.unembed.weight
        assert model.transformer.h[1].attn.c_attn.bias.shape == (144,)

    def test_an_empty_prompt_is_refused(self, model: LanguageModel) -> None:
        with pytest.raises(ValueError, match="empty"):
            model.trace(torch.zeros(1, 0, dtype=torch.long))


WRONG = torch.zeros(7, 5, dtype=torch.float64)
STREAM = r"blocks\.0\.hook_resid_post \(batch 2, pos 9, d_model 48\)"


def doubled(h: torch.Tensor, times: int) -> torch.Tensor:
    for _ in range(times):
        h = h + h
    return h


class TestOperations:
    @pytest.mark.parametrize(
        ("ask", "said"),
        [
            (lambda h: h + WRONG, rf"add of {STREAM} and a tensor \[7, 5\]: axis 'd_model' is 48 and 5"),
            (lambda h: h.mul_(WRONG), rf"mul_ of {STREAM} and a tensor \[7, 5\]: .*axis 'pos' is 9 and 7"),
            (lambda h: h * 2 - WRONG[0], r"the result of mul \(batch 2, pos 9, d_model 48\)"),
            (lambda h: h[:, -1] + WRONG, r"hook_resid_post\[:, -1\] \(batch 2, d_model 48\) and a tensor \[7, 5\]"),
            (lambda h: h.__setitem__(slice(None), WRONG), rf"{STREAM} cannot be set to a tensor \[7, 5\]"),
            (
                lambda h: h.__setitem__((0, ..., slice(2, 6, 2)), WRONG),
                r"\[0, \.\.\., 2:6:2\] is \(pos 9, d_model 2\),",
            ),
            (lambda h: h.__rsub__(WRONG), rf"__rsub__ of {STREAM} and a tensor \[7, 5\]: axis 'd_model' is 48 and 5"),
            (
                lambda h: h[:, h[0, :, 0].argmax()] + WRONG,
                r"add of blocks.*\(batch 2, d_model 48\) and a tensor \[7, 5\]",
            ),
            (lambda h: doubled(h, 60) + WRONG, r"the result of add \(batch 2, pos 9, d_model 48\) and a tensor"),
            (lambda h: h @ WRONG, rf"matmul of {STREAM} and a tensor \[7, 5\]\. PyTorch: .*must have same"),
        ],
    )
    def test_what_does_not_fit_is_named_with_its_axes(self, model: LanguageModel, ask: Callable, said: str) -> None:
        with pytest.raises(RuntimeError, match=said), model.trace(TOKENS):
            ask(model.transformer.h[0].output[0])

    @pytest.mark.parametrize(
        ("ask", "kind", "said"),
        [
            (lambda h: h[:, torch.tensor([99])], IndexError, rf"{STREAM} at \[:, a tensor \[1\]\]\. PyTorch: index 99"),
            (
                lambda h: h @ torch.zeros(48, 2),
                RuntimeError,
                r"torch\.float64 and a tensor \[48, 2\] of torch\.float32",
            ),
            (lambda h: torch.linalg.cholesky(-(h[0, :2, :2] ** 2)), torch.linalg.LinAlgError, "positive-definite"),
        ],
    )
    def test_an_error_of_the_run_ends_at_the_line_of_the_body(
        self, model: LanguageModel, ask: Callable, kind: type[Exception], said: str
    ) -> None:
        with pytest.raises(kind, match=said) as raised, model.trace(TOKENS):
            kept = ask(model.transformer.h[0].output[0])
        last = raised.traceback[-1]
        assert (str(last.path), last.name, last.lineno) == (__file__, "<lambda>", ask.__code__.co_firstlineno - 1)
        del kept

    def test_an_error_of_a_look_ends_at_the_line_that_recorded_it(self, model: LanguageModel) -> None:
        with pytest.raises(IndexError) as raised, model.trace(TOKENS):
            picked = (lambda h: h[torch.tensor([9])])(model.transformer.h[0].output[0])
            print(picked)
        assert [entry.name for entry in raised.traceback][-2:] == [
            "test_an_error_of_a_look_ends_at_the_line_that_recorded_it",
            "<lambda>",
        ]

    def test_an_error_of_the_end_ends_in_the_block(self, model: LanguageModel) -> None:
        with pytest.raises(TraceError, match="no prompt") as raised, model.trace():
            pass
        assert raised.traceback[-1].name == "test_an_error_of_the_end_ends_in_the_block"
