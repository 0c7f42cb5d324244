"""What a trace promises: values are plain tensors afterwards, operations are recorded, looks run the model."""

import pytest
import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from families import BIASED, PLAIN, error, folder, ids, ours
from first_traces import TOKENS, plain_values, resid
from nnzoo import LanguageModel
from nnzoo.tracing.lazy import LazyTensor


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(folder("gpt2", "default"))


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    return plain_values()


class TestAfterTheBlock:
    def test_a_value_is_a_plain_tensor(self, model: LanguageModel, plain: dict) -> None:
        with model.trace(TOKENS):
            hidden = model.transformer.h[1].output[0].save()
            assert type(hidden) is LazyTensor
        assert type(hidden) is Tensor
        assert error(hidden, plain[resid(1)]) < 1e-12

    def test_it_is_the_same_object_in_whatever_holds_it(self, model: LanguageModel) -> None:
        kept = {}
        with model.trace(TOKENS):
            hidden = model.transformer.h[0].output[0]
            kept["h"] = [hidden, (hidden.mean(),)]
        assert kept["h"][0] is hidden
        assert kept["h"][1][0] == hidden.mean()

    def test_an_unsaved_value_is_there_too(self, model: LanguageModel, plain: dict) -> None:
        with model.trace(TOKENS):
            hidden = model.transformer.h[0].output[0]
        assert error(hidden, plain[resid(0)]) < 1e-12

    def test_results_of_topk_keep_their_structure(self, model: LanguageModel, plain: dict) -> None:
        with model.trace(TOKENS):
            top = model.output[:, -1].topk(3)
        expected = plain["unembed.hook_out"][:, -1].topk(3)
        assert type(top) is type(expected)
        assert torch.equal(top.indices, expected.indices)

    def test_a_small_slice_does_not_keep_the_activation(self, model: LanguageModel) -> None:
        with model.trace(TOKENS):
            corner = model.transformer.h[0].output[0][0, 0, :3].save()
        assert corner.untyped_storage().nbytes() == corner.nbytes

    @pytest.mark.local("values that come back have memory of their own")
    def test_slices_of_a_value_that_is_kept_share_its_memory(self, model: LanguageModel) -> None:
        with model.trace(TOKENS):
            hidden = model.transformer.h[0].output[0]
            row = hidden[0]
        assert row.untyped_storage().data_ptr() == hidden.untyped_storage().data_ptr()

    def test_the_output_answers_logits(self, model: LanguageModel, plain: dict) -> None:
        with model.trace(TOKENS):
            out = model.output.save()
            inside, by_name = model.output.logits, model.output["logits"]
        assert type(out) is Tensor
        assert torch.equal(out.logits, out) and torch.equal(inside, out) and torch.equal(by_name, out)
        assert error(out, plain["unembed.hook_out"]) < 1e-12
        with pytest.raises(KeyError, match=r"has \['logits'\] and \['loss'\]"), model.trace(TOKENS):
            model.output["hidden_states"]

    def test_nothing_is_left_on_the_model(self, model: LanguageModel) -> None:
        with model.trace(TOKENS):
            model.transformer.h[0].output[0][:] = 0
            logits = model.output
        assert logits.isfinite().all()
        assert not any(point.hooks for point in model._model.hook_points.values())


class TestOperations:
    def test_whatever_pytorch_does_to_tensors_is_recorded(self, model: LanguageModel, plain: dict) -> None:
        weight = torch.rand(48, 5, dtype=torch.float64)
        linear = nn.Linear(48, 4).double()

        def everything(h: Tensor) -> list[Tensor]:
            return [
                h + 1, 1 + h, 2 - h, h @ weight, -h, h**2, h / h.norm(), (h > 0).sum(), h.mean(dim=-1),
                h.transpose(1, 2), h.softmax(-1), h.max(dim=-1).values, h[:, -1], h[..., None, :], h[[0, 1]],
                h.argmax(-1), h.mT.shape[0] * h, torch.cat([h, h]), torch.stack([h, h]), torch.where(h > 0, h, 0),
                sum([h, h]), torch.einsum("bpd,df->bpf", h, weight), F.gelu(h), F.layer_norm(h, (48,)), linear(h),
                *h.split(16, dim=-1), *h.unbind(0), *list(h), rearrange(h, "b p (n d) -> b n p d", n=4),
                reduce(h, "b p d -> b d", "mean"), einsum(h, weight, "b p d, d f -> p b f"), h.to(torch.float32),
                h.double(), torch.zeros_like(h), h.new_ones(3), h.clone().fill_(2.0), h.numel() * h, h.size(-1) * h,
            ]  # fmt: skip

        with model.trace(TOKENS):
            got = everything(model.transformer.h[1].output[0])
        with torch.no_grad():
            expected = everything(plain[resid(1)])
        for one, value in zip(got, expected, strict=True):
            assert one.dtype == value.dtype
            assert error(one.double(), value.double()) < 1e-10

    def test_annotated_functions_take_lazy_tensors(self, model: LanguageModel) -> None:
        def norm_of(x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos"]:
            return x.norm(dim=-1)

        with model.trace(TOKENS):
            norms = norm_of(model.transformer.h[0].output[0])
        assert norms.shape == (2, 9)

    def test_shapes_are_known_before_anything_runs(self, model: LanguageModel) -> None:
        with model.trace(TOKENS):
            hidden = model.transformer.h[0].output[0]
            assert hidden.shape == (2, 9, 48) and hidden.dtype == torch.float64 and hidden.device.type == "cpu"
            assert (hidden @ torch.rand(48, 5).double()).shape == (2, 9, 5)
            assert model.transformer.h[0].attn.output[1].shape == (2, 4, 9, 9)

    def test_a_wrong_shape_is_an_error_at_its_line(self, model: LanguageModel) -> None:
        with pytest.raises(RuntimeError, match="reduction dim"), model.trace(TOKENS):
            model.transformer.h[0].output[0] @ torch.rand(5, 5).double()
            raise AssertionError("the line before should have raised")

    def test_repr_describes_and_runs_nothing(self, model: LanguageModel) -> None:
        with model.trace(TOKENS):
            hidden = model.transformer.h[0].output[0]
            assert repr(hidden) == "LazyTensor(blocks.0.hook_resid_post, shape=[2, 9, 48], dtype=torch.float64)"

    @pytest.mark.local("it is refused in the words of a graph that cannot be sent")
    def test_a_constant_that_changed_since_is_refused(self, model: LanguageModel) -> None:
        vector = torch.ones(48, dtype=torch.float64)
        with pytest.raises(RuntimeError, match="changed in place before the trace ran"), model.trace(TOKENS):
            shifted = model.transformer.h[0].output[0] + vector
            vector += 1
        del shifted

    def test_a_move_between_devices_is_recorded_and_looks_at_nothing(self, model: LanguageModel) -> None:
        with model.trace(TOKENS):
            hidden = model.transformer.h[2].output[0]
            moved = [hidden.cpu().save(), hidden.to("cpu"), hidden.to(hidden.device, torch.float32), hidden.to(hidden)]
            model.transformer.h[0].output[0][:] = 0
        for one in moved:
            assert error(one.double(), hidden) < 1e-6, "the value of the final pass"


class TestLooking:
    def test_numbers_are_read_where_they_are_asked_for(self, model: LanguageModel, plain: dict) -> None:
        value = plain[resid(0)]
        with model.trace(TOKENS):
            hidden = model.transformer.h[0].output[0]
            assert hidden.norm().item() == pytest.approx(value.norm().item())
            assert f"{hidden.mean():.4f}" == f"{value.mean():.4f}"
            assert bool(hidden.norm() > 0)
            assert error(hidden[hidden > 1], value[value > 1]) < 1e-12
            assert hidden.tolist()[0][0] == pytest.approx(value.tolist()[0][0])
            assert str(hidden) == str(value)

    def test_a_look_sees_the_edits_recorded_before_it(self, model: LanguageModel) -> None:
        with model.trace(TOKENS):
            model.transformer.h[0].output[0][:] = 0
            assert model.transformer.h[0].output[0].abs().max() == 0
            assert not model.transformer.h[1].output[0].norm().isnan()

    def test_a_branch_on_a_value_takes_the_right_side(self, model: LanguageModel, plain: dict) -> None:
        with model.trace(TOKENS):
            if model.transformer.h[0].output[0].norm() > 1e9:
                model.transformer.h[1].output[0][:] = 0
            logits = model.output
        assert error(logits, plain["unembed.hook_out"]) < 1e-12

    def test_writing_into_a_real_tensor_looks(self, model: LanguageModel, plain: dict) -> None:
        buffer = torch.zeros(2, 9, 48, dtype=torch.float64)
        with model.trace(TOKENS):
            buffer[0] = model.transformer.h[0].output[0][0]
        assert error(buffer[0], plain[resid(0)][0]) < 1e-12


@ids(PLAIN)
def test_block_outputs_are_tuples_or_tensors_by_choice(family: str, setting: str) -> None:
    tuples = LanguageModel(folder(family, setting))
    tensors = LanguageModel(folder(family, setting), block_output="tensor")
    blocks = "transformer.h" if family == "gpt2" else "model.layers"
    with tuples.trace(TOKENS):
        one = tuples.get(blocks)[1].output[0]
    with tensors.trace(TOKENS):
        other = tensors.get(blocks)[1].output
    assert torch.equal(one, other)


@ids(BIASED)
def test_a_module_can_be_called_on_a_value_of_the_body(family: str, setting: str) -> None:
    model = LanguageModel(folder(family, setting))
    final = model.transformer.ln_f if family == "gpt2" else model.model.norm
    blocks = model.transformer.h if family == "gpt2" else model.model.layers
    with model.trace(TOKENS):
        lens = model.lm_head(final(blocks[0].output[0]))
        logits = model.lm_head(final(blocks[2].output[0]))
        out = model.output
    assert error(logits, out) < 1e-12
    native = ours(family, setting)
    with torch.no_grad():
        stream = native(TOKENS, stop_at_layer=1)
        assert error(lens, native.unembed(native.ln_final(stream))) < 1e-12
