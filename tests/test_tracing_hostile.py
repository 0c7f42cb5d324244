"""What lies in wait for a tracer: functions that turn tensors in place, results written to `out=`, strange strides."""

import time

import pytest
import torch
from torch import Tensor

from families import error, folder, ours, prompt
from nnzoo import LanguageModel
from nnzoo.tracing.recorder import TraceError

TOKENS = prompt(2, 9)
RESID = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(folder("gpt2", "default"))


@pytest.fixture(scope="module")
def plain() -> Tensor:
    with torch.no_grad():
        return ours("gpt2", "default").run_with_cache(TOKENS)[1][RESID]


class TestShapesChangedInPlace:
    @pytest.mark.parametrize(
        ("name", "args"), [("unsqueeze_", (0,)), ("transpose_", (0, 1)), ("swapaxes_", (1, 2)), ("squeeze_", (0,))]
    )
    def test_a_tensor_turned_in_place_is_the_view(
        self, model: LanguageModel, plain: Tensor, name: str, args: tuple
    ) -> None:
        with model.trace(TOKENS) as tracer:
            hidden = tracer.read(RESID)
            turned = hidden[:1].clone()
            assert getattr(turned, name)(*args) is turned
            shape = turned.shape
            turned[:] += 1
        expected = getattr(plain[:1].clone(), name)(*args) + 1
        assert shape == turned.shape == expected.shape
        assert error(turned, expected) < 1e-10

    def test_what_is_known_of_shapes_stays_so(self, model: LanguageModel) -> None:
        for _ in range(2):
            with model.trace(TOKENS) as tracer:
                copy = tracer.read(RESID).clone()
                assert copy.shape == (2, 9, 48)
                copy.unsqueeze_(0)

    def test_resizing_is_refused(self, model: LanguageModel) -> None:
        with pytest.raises(TraceError, match="resize_"), model.trace(TOKENS) as tracer:
            tracer.read(RESID).clone().resize_(3, 3)

    def test_an_edit_of_a_list_of_tensors_is_refused(self, model: LanguageModel) -> None:
        with pytest.raises(TraceError, match="_foreach_add_"), model.trace(TOKENS) as tracer:
            torch._foreach_add_([tracer.read(RESID)], 1)


class TestOut:
    def test_several_results_are_written(self, model: LanguageModel, plain: Tensor) -> None:
        with model.trace(TOKENS) as tracer:
            hidden = tracer.read(RESID)
            values, indices = hidden[..., :3].clone(), hidden[..., :3].long()
            torch.topk(hidden, 3, out=(values, indices))
        assert error(values, plain.topk(3).values) < 1e-10
        assert torch.equal(indices, plain.topk(3).indices)

    def test_another_shape_is_an_error(self, model: LanguageModel) -> None:
        with pytest.raises(RuntimeError, match="out="), model.trace(TOKENS) as tracer:
            hidden = tracer.read(RESID)
            torch.add(hidden, 1, out=hidden.new_zeros(3))


class TestViews:
    def test_a_prompt_in_a_batch_has_the_strides_that_it_has_alone(self, model: LanguageModel) -> None:
        for hook in [*model.order][::5]:
            with model.trace() as tracer:
                with tracer.invoke(prompt(2, 9)):
                    longer = tracer.read(hook)
                    flat = longer.view(-1)
                with tracer.invoke(prompt(2, 4)):
                    tracer.read(hook).view(-1)
            assert torch.equal(flat, longer.flatten()), hook

    def test_a_view_in_the_shape_of_a_later_value_is_a_view(self, model: LanguageModel) -> None:
        with model.trace(TOKENS) as tracer:
            early, late = tracer.read("blocks.0.hook_resid_post"), tracer.read(RESID)
            view = early.view_as(late)
            early[:] = 0
            view[:, 0] = 1
        assert (view[:, 0] == 1).all() and (view[:, 1:] == 0).all()
        assert torch.equal(early, view)


class TestDtypes:
    def test_a_tensor_made_of_traced_numbers_has_their_dtype(self, model: LanguageModel) -> None:
        with model.trace(TOKENS) as tracer:
            hidden = tracer.read(RESID)
            numbers = torch.tensor([hidden[0, 0, 0], hidden[0, 0, 1]])
            index = torch.tensor([hidden[0, 0].argmax()])
        assert numbers.dtype == torch.float64
        assert index.dtype == torch.long


def test_many_edits_of_one_value_take_time_in_proportion(model: LanguageModel) -> None:
    def seconds(n: int) -> float:
        start = time.perf_counter()
        with model.trace(TOKENS) as tracer:
            hidden = tracer.read(RESID)
            for _ in range(n):
                hidden[:, 0] += 0.001
        return time.perf_counter() - start

    seconds(10)
    assert seconds(800) < 8 * seconds(200) + 0.2
