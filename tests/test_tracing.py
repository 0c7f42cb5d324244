"""What a trace promises: one pass, lazily, and plain tensors afterwards."""

import gc
import io
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from families import BIASED, PLAIN, error, folder, ids, ours, prompt
from nnzoo import LanguageModel
from nnzoo.architectures.hooks import HookShapeError
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.recorder import TraceError

TOKENS = prompt(2, 9)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(folder("gpt2", "default"))


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    """Every value of the pass without a trace."""
    with torch.no_grad():
        return dict(ours("gpt2", "default").run_with_cache(TOKENS)[1].items())


def resid(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"


def edited(name: str, change: object) -> Tensor:
    """Logits of a pass in which a hook changes one value."""
    with torch.no_grad():
        return ours("gpt2", "default").run_with_hooks(TOKENS, fwd_hooks=[(name, lambda value, hook: change(value))])


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

    def test_slices_of_a_value_that_is_kept_share_its_memory(self, model: LanguageModel) -> None:
        with model.trace(TOKENS):
            hidden = model.transformer.h[0].output[0]
            row = hidden[0]
        assert row.untyped_storage().data_ptr() == hidden.untyped_storage().data_ptr()

    def test_the_output_answers_logits(self, model: LanguageModel, plain: dict) -> None:
        with model.trace(TOKENS):
            out = model.output.save()
            inside = model.output.logits
        assert type(out) is Tensor
        assert torch.equal(out.logits, out) and torch.equal(inside, out)
        assert error(out, plain["unembed.hook_out"]) < 1e-12

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

    def test_a_block_that_is_not_there_is_counted(self, model: LanguageModel) -> None:
        with pytest.raises(IndexError, match=r"3 blocks \(0 to 2\), not 9"):
            _ = model.transformer.h[9]

    def test_weights_have_their_hugging_face_names(self, model: LanguageModel) -> None:
        assert model.lm_head.weight is model._model.unembed.weight
        assert model.transformer.h[1].attn.c_attn.bias.shape == (144,)

    def test_an_error_of_the_run_names_the_line_of_the_body(self, model: LanguageModel) -> None:
        index = torch.tensor([99])
        with pytest.raises(IndexError) as caught, model.trace(TOKENS):
            picked = model.transformer.h[0].output[0][:, :, index]
        assert any("test_tracing.py" in note for note in getattr(caught.value, "__notes__", ["test_tracing.py"]))
        del picked

    def test_an_empty_prompt_is_refused(self, model: LanguageModel) -> None:
        with pytest.raises(ValueError, match="empty"):
            model.trace(torch.zeros(1, 0, dtype=torch.long))


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
