"""What a body writes reaches the model, and program order decides at one place."""

import pytest
import torch
from torch import Tensor, nn

from families import error, folder
from first_traces import TOKENS, edited, plain_values, resid
from nnzoo import LanguageModel
from nnzoo.architectures.hooks import HookShapeError
from nnzoo.tracing.recorder import TraceError


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(folder("gpt2", "default"))


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    return plain_values()


class TestEdits:
    @pytest.mark.parametrize(
        "way",
        ["slice = value", "slice *=", "[0] =", "[0] +=", "output =", "+= on a name"],
    )
    def test_every_way_to_write_reaches_the_logits(self, model: LanguageModel, way: str) -> None:
        shift = torch.rand(48, dtype=torch.float64)
        with model.trace(TOKENS):
            block = model.transformer.h[1]
            match way:
                case "slice = value":
                    block.output[0][:] = block.output[0] + shift
                case "slice *=":
                    block.output[0][:] *= 1
                    block.output[0][:] += shift
                case "[0] =":
                    block.output[0] = block.output[0] + shift
                case "[0] +=":
                    block.output[0] += shift
                case "output =":
                    block.output = (block.output[0] + shift,)
                case _:
                    hidden = block.output[0]
                    hidden += shift
            logits = model.output
        assert error(logits, edited(resid(1), lambda value: value + shift)) < 1e-12

    def test_an_alias_sees_an_edit_and_a_clone_does_not(self, model: LanguageModel, plain: dict) -> None:
        with model.trace(TOKENS):
            hidden = model.transformer.h[1].output[0]
            alias, clone, before = hidden[:, 0], hidden.clone(), hidden.norm()
            hidden[:] = 0
            after = hidden.norm()
        assert alias.abs().max() == 0 and after == 0
        assert error(clone, plain[resid(1)]) < 1e-12
        assert before == pytest.approx(plain[resid(1)].norm())

    def test_a_value_computed_later_but_written_before_sees_what_was(self, model: LanguageModel, plain: dict) -> None:
        with model.trace(TOKENS):
            hidden = model.transformer.h[0].output[0]
            both = hidden + model.transformer.h[2].output[0]
            hidden[:, 0] = 0
            last = model.transformer.h[2].output[0]
        assert error(both - last, plain[resid(0)]) < 1e-10

    def test_places_may_be_read_in_any_order(self, model: LanguageModel, plain: dict) -> None:
        with model.trace(TOKENS):
            logits = model.output
            late = model.transformer.h[2].output[0]
            early = model.transformer.h[0].output[0]
            model.transformer.h[1].output[0][:, :1] = 0
        assert error(early, plain[resid(0)]) < 1e-12

        def zero(value: Tensor) -> Tensor:
            value[:, :1] = 0
            return value

        assert error(logits, edited(resid(1), zero)) < 1e-12
        assert late.isfinite().all()

    def test_an_edit_of_the_norms_input_leaves_the_residual_stream(self, model: LanguageModel, plain: dict) -> None:
        with model.trace(TOKENS):
            model.transformer.h[1].ln_1.input[:] = 0
            pre = model.transformer.h[1].input
        assert error(pre, plain["blocks.1.hook_resid_pre"]) < 1e-12

    def test_an_edit_of_a_view_edits_the_heads(self, model: LanguageModel) -> None:
        with model.trace(TOKENS):
            model.transformer.h[1].attn.c_proj.input[:, :, 12:24] = 0
            logits = model.output

        def ablate(z: Tensor) -> Tensor:
            z[:, :, 1] = 0
            return z

        assert error(logits, edited("blocks.1.attn.hook_z", ablate)) < 1e-12

    def test_a_place_that_was_set_is_read_back(self, model: LanguageModel) -> None:
        with model.trace(TOKENS):
            block = model.transformer.h[1]
            block.output[0] = block.output[0] * 2
            norm = block.output[0].norm()
            logits = model.output
        assert norm > 0
        assert error(logits, edited(resid(1), lambda value: value * 2)) < 1e-12

    def test_an_index_that_is_a_value_writes_where_it_says(self, model: LanguageModel, plain: dict) -> None:
        with model.trace(TOKENS):
            hidden = model.transformer.h[0].output[0]
            hidden[:, hidden.norm(dim=-1)[0].argmax()] = 0
        expected = plain[resid(0)].clone()
        expected[:, expected.norm(dim=-1)[0].argmax()] = 0
        assert error(hidden, expected) < 1e-12

    def test_masks_edited_in_place_are_edits(self, model: LanguageModel) -> None:
        with model.trace(TOKENS):
            mask = model.transformer.h[0].output[0] > 0
            before = mask.sum() + 0 * model.transformer.h[2].output[0].sum().long()
            mask &= False
            nn.init.constant_(model.transformer.h[1].output[0], 0)
            stream = model.transformer.h[2].input
        assert before > 0 and mask.sum() == 0 and stream.abs().max() == 0

    def test_a_misspelt_attribute_is_not_set(self, model: LanguageModel) -> None:
        with pytest.raises(AttributeError, match="cannot be set"), model.trace(TOKENS):
            model.transformer.h[0].mlp.outptu = torch.zeros(2, 9, 48).double()

    def test_a_later_value_cannot_set_an_earlier_place(self, model: LanguageModel) -> None:
        with pytest.raises(TraceError, match=r"blocks.0.hook_resid_post cannot be set from blocks.2.hook_resid_post"):
            with model.trace(TOKENS):
                model.transformer.h[0].output[0][:] = model.transformer.h[2].output[0]

    def test_a_wrong_shape_put_back_names_the_axis(self, model: LanguageModel) -> None:
        with pytest.raises(HookShapeError, match="axis 'pos': expected 9, got 8"), model.trace(TOKENS):
            model.transformer.h[0].output = (model.transformer.h[0].output[0][:, 1:],)
