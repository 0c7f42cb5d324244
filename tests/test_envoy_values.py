"""What stands at a module or hook point: read, written, left out, computed on the side."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from families import PLAIN, error, folder, ids, ours, prompt, theirs
from nnzoo import LanguageModel
from nnzoo.architectures.hooks import HookShapeError
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.recorder import TraceError

TOKENS = prompt(2, 9)
BLOCKS = {"gpt2": "transformer.h", "llama": "model.layers", "mistral": "model.layers"}
SETTING = dict(PLAIN)


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
    return {family: LanguageModel(folder(family, setting)) for family, setting in PLAIN}


@pytest.fixture(scope="module")
def tensors() -> LanguageModel:
    return LanguageModel(folder("gpt2", "default"), block_output="tensor")


@pytest.fixture
def model(models: dict) -> LanguageModel:
    return models["gpt2"]


def logits_with(family: str, path: str, change: Callable[[Any], Any]) -> Tensor:
    """transformers' logits when a forward hook changes a module's output."""
    model = theirs(family, SETTING[family])
    handle = model.get_submodule(path).register_forward_hook(lambda m, args, out: change(out))
    try:
        with torch.no_grad():
            return model(TOKENS).logits
    finally:
        handle.remove()


class TestHookPoints:
    @ids(PLAIN)
    def test_each_is_read_by_its_path(self, models: dict, family: str, setting: str) -> None:
        names = [n for n in ours(family, setting).hook_points if not n.startswith(("blocks.0", "blocks.2"))]
        with torch.no_grad():
            cache = ours(family, setting).run_with_cache(TOKENS, names_filter=names)[1]
        with models[family].trace(TOKENS):
            values = {name: models[family].get(name).output for name in names}
            inputs = {name: models[family].get(name).input for name in names}
        for name in names:
            assert torch.equal(values[name], inputs[name])
            assert error(values[name], cache[name]) < 1e-12

    @ids(PLAIN)
    def test_each_is_written_by_its_path(self, models: dict, family: str, setting: str) -> None:
        shift = {
            "blocks.1.attn.hook_z": 0.5,
            "blocks.1.mlp.hook_pre": -1,
            "ln_final.hook_normalized": 2,
            "hook_embed": 1,
        }
        if family != "gpt2":
            shift["blocks.1.attn.hook_rot_q"] = 0.25
        for name, by in shift.items():
            with torch.no_grad():
                expected = ours(family, setting).run_with_hooks(
                    TOKENS, fwd_hooks=[(name, lambda value, hook, by=by: value + by)]
                )
            with models[family].trace(TOKENS):
                models[family].get(name).output = models[family].get(name).output + by
                replaced = models[family].output
            with models[family].trace(TOKENS):
                models[family].get(name).input += by
                edited = models[family].output
            assert error(replaced, expected) < 1e-12 and torch.equal(edited, replaced)

    def test_they_stand_at_the_hugging_face_module_too(self, models: dict) -> None:
        for family, attention in (("gpt2", "attn"), ("llama", "self_attn")):
            model = models[family]
            block = model.get(BLOCKS[family])[1]
            with model.trace(TOKENS):
                one = block.get(attention).hook_pattern.output
                other = model.blocks[1].attn.hook_pattern.output
                third = block.get(attention).output[1]
                post, hidden = block.hook_resid_post.output, block.output[0]
            assert torch.equal(one, other) and torch.equal(one, third) and torch.equal(post, hidden)

    def test_a_native_module_answers_as_the_one_of_hugging_face(self, model: LanguageModel) -> None:
        with model.trace(TOKENS):
            ours, theirs = model.blocks[1].attn.output, model.transformer.h[1].attn.output
            hidden, whole = model.blocks[1].output[0], model.transformer.h[1].output[0]
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)) and torch.equal(hidden, whole)

    def test_a_wrong_shape_is_named(self, model: LanguageModel) -> None:
        with pytest.raises(HookShapeError, match="axis 'head': expected 4, got 3"), model.trace(TOKENS):
            model.blocks[1].attn.hook_z.output = model.blocks[1].attn.hook_z.output[:, :, 1:]


class TestWriting:
    @pytest.mark.parametrize("convention", ["tuple", "tensor"])
    @pytest.mark.parametrize("way", ["[0] = x", "[0] += v", "[0] *= 2", "= (x,)", "= x", "+= v", "skip", "skip tuple"])
    def test_a_blocks_output_is_what_was_written(
        self, models: dict, tensors: LanguageModel, convention: str, way: str
    ) -> None:
        model = models["gpt2"] if convention == "tuple" else tensors
        tuples = convention == "tuple"
        if not tuples and way.startswith("[0]"):
            row = torch.zeros(2, 1, 1).double()
            row[0] = 1  # [0] is the first prompt there
        else:
            row = torch.ones(2, 1, 1).double()
        with model.trace(TOKENS):
            block = model.transformer.h[1]
            value = block.hook_resid_post.output * 2
            if way == "[0] = x":
                block.output[0] = value if tuples else value[0]
            elif way == "[0] += v":
                block.output[0] += block.hook_resid_post.output if tuples else block.hook_resid_post.output[0]
            elif way == "[0] *= 2":
                block.output[0] *= 2
            elif way == "= (x,)":
                block.output = (value,)
            elif way == "= x":
                block.output = value
            elif way == "+= v" and tuples:
                block.output[0][:] += block.output[0]
            elif way == "+= v":
                block.output += block.output
            else:
                block.skip(value if way == "skip" else (value,))
            logits = model.output
        assert error(logits, logits_with("gpt2", "transformer.h.1", lambda out: out * (1 + row))) < 1e-12

    def test_attention_takes_its_tuple_and_may_leave_the_pattern(self, models: dict) -> None:
        for family, path in (("gpt2", "transformer.h.1.attn"), ("llama", "model.layers.1.self_attn")):
            model = models[family]
            with model.trace(TOKENS):
                attention = model.get(path)
                attention.output = (attention.output[0] * 3, None)
                logits = model.output
            with model.trace(TOKENS):
                model.get(path).skip((torch.zeros(2, 9, 48).double(), None))
                ablated = model.output
            assert error(logits, logits_with(family, path, lambda out: (out[0] * 3, *out[1:]))) < 1e-12
            assert error(ablated, logits_with(family, path, lambda out: (out[0] * 0, *out[1:]))) < 1e-12

    @pytest.mark.parametrize("family", ["gpt2", "llama"])
    def test_a_skipped_module_gives_what_it_was_told(self, models: dict, family: str) -> None:
        model, path = models[family], f"{BLOCKS[family]}.1.mlp"
        with model.trace(TOKENS):
            model.get(path).skip(model.get(path).input)
            logits = model.output
        mlp = theirs(family, SETTING[family]).get_submodule(path)
        handle = mlp.register_forward_hook(lambda module, args, out: args[0])
        with torch.no_grad():
            expected = theirs(family, SETTING[family])(TOKENS).logits
        handle.remove()
        assert error(logits, expected) < 1e-12

    def test_inputs_go_in_as_they_came_out(self, models: dict) -> None:
        model = models["llama"]
        attention = model.model.layers[1].self_attn
        with model.trace(TOKENS):
            args, kwargs = attention.inputs
            attention.inputs = (args, {"hidden_states": kwargs["hidden_states"] * 2})
            logits = model.output
        with model.trace(TOKENS):
            attention.inputs = ((attention.input * 2,), {})
            same = model.output
        with model.trace(TOKENS):
            attention.input = attention.input * 2
            expected = model.output
        assert args == () and torch.equal(logits, expected) and torch.equal(same, expected)

    @pytest.mark.parametrize(
        ("write", "kind", "complaint"),
        [
            (lambda h: setattr(h, "output", 0), TypeError, "takes a tensor, not 0"),
            (lambda h: setattr(h, "output", (h.input, h.input)), ValueError, "a tuple of 1, but got 2"),
            (lambda h: setattr(h.attn, "output", h.input), TypeError, r"set .output\[0\], or give a tuple"),
            (lambda h: setattr(h.attn, "inputs", ((h.input,), {"mask": 1})), ValueError, "and nothing else"),
            (lambda h: setattr(h, "inputs", h.input), ValueError, "and nothing else"),
            (lambda h: h.output.__setitem__(3, h.input), IndexError, r"no .output\[3\]"),
            (lambda h: h.output.__setitem__("x", h.input), TypeError, "tuple here"),
            (lambda h: h.attn.skip(h.input), TypeError, r"set .output\[0\], or give a tuple"),
            (lambda h: h.attn.output.last_hidden_state, AttributeError, r".output\[0\]"),
            (lambda h: h.attn.output.foo, AttributeError, "no 'foo'"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, model: LanguageModel, write: Callable, kind: type[Exception], complaint: str
    ) -> None:
        with pytest.raises(kind, match=complaint), model.trace(TOKENS):
            write(model.transformer.h[1])

    @ids(PLAIN)
    def test_the_base_models_output_is_written_by_name(self, models: dict, family: str, setting: str) -> None:
        model, base = models[family], "transformer" if family == "gpt2" else "model"
        with model.trace(TOKENS):
            model.get(base).output.last_hidden_state = model.get(base).output["last_hidden_state"] * 2
            logits = model.output

        def double(out: Any) -> Any:
            out["last_hidden_state"] = out["last_hidden_state"] * 2
            return out

        assert error(logits, logits_with(family, base, double)) < 1e-12


class TestCalls:
    @ids(PLAIN)
    def test_modules_give_what_transformers_give(self, models: dict, family: str, setting: str) -> None:
        model, hf = models[family], theirs(family, setting)
        names = "ln_1 attn.c_attn mlp.c_fc mlp mlp.act mlp.dropout ln_2".split()
        if family != "gpt2":
            names = "input_layernorm self_attn.q_proj mlp.up_proj mlp mlp.act_fn post_attention_layernorm".split()
        names = [f"{BLOCKS[family]}.1.{name}" for name in names]
        x = torch.rand(2, 9, 48).double()
        with model.trace(TOKENS):
            lazy = model.blocks[0].hook_resid_post.output
            on_lazy = {name: model.get(name)(lazy) for name in names}
            assert all(isinstance(value, LazyTensor) for value in on_lazy.values())
            on_real = {name: model.get(name)(x) for name in names}
            looked_up = model.get(BLOCKS[family].replace("h", "wte").replace("layers", "embed_tokens"))(TOKENS)
        for name in names:
            with torch.no_grad():
                assert error(on_lazy[name], hf.get_submodule(name)(lazy)) < 1e-12
                assert error(on_real[name], hf.get_submodule(name)(x)) < 1e-12
        assert torch.equal(looked_up, hf.get_input_embeddings()(TOKENS))

    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("transformer.h.1", "needs the positions and the mask.*set its .input"),
            ("transformer.h.1.attn", "needs the positions and the mask"),
            ("blocks.1", "needs the positions and the mask"),
            ("transformer.h", "a list of modules"),
            ("transformer", r"a whole pass; model\(prompt\)"),
            ("blocks.1.hook_resid_post", "a place and no function"),
        ],
    )
    def test_what_is_no_function_of_a_tensor_says_why(self, model: LanguageModel, path: str, reason: str) -> None:
        with pytest.raises(TypeError, match=f"cannot be called on its own.*{reason}"), model.trace(TOKENS):
            model.get(path)(model.transformer.h[0].output[0])

    def test_hook_is_for_ones_own_modules(self, model: LanguageModel) -> None:
        with pytest.raises(TypeError, match="hook=True is for modules of your own"), model.trace(TOKENS):
            model.transformer.h[1].mlp(model.transformer.h[0].output[0], hook=True)

    def test_a_call_leaves_the_pass_as_it_is(self, model: LanguageModel) -> None:
        with model.trace(TOKENS):
            model.transformer.h[1].mlp.output[:] = 0
            on_the_side = model.transformer.h[1].mlp(model.transformer.h[1].mlp.input)
            at_its_place = model.transformer.h[1].mlp.output
        assert at_its_place.abs().max() == 0 and on_the_side.abs().max() > 0


class Coder(nn.Module):
    """An autoencoder of the kind that people put next to an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(48, 100).double(), nn.Linear(100, 48).double()
        self.threshold = 0.5

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.decoder(torch.relu(self.encoder(x) - self.threshold)) * scale

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(self.encoder(x))


class TestOwnModules:
    @pytest.fixture
    def model(self) -> LanguageModel:
        model = LanguageModel(folder("gpt2", "default"))
        model.transformer.h[1].mlp.sae = Coder()
        return model

    def test_one_is_called_in_a_trace_and_outside(self, model: LanguageModel) -> None:
        sae = model.transformer.h[1].mlp.sae
        with model.trace(TOKENS):
            mlp = model.transformer.h[1].mlp.output.clone()
            model.transformer.h[1].mlp.output = sae(mlp, scale=2.0)
            features = sae.encode(mlp)
            logits = model.output
        with torch.no_grad():
            assert error(features, sae._module.encode(mlp)) < 1e-12
            assert error(sae(mlp), sae._module(mlp)) == 0
            assert error(logits, logits_with("gpt2", "transformer.h.1.mlp", lambda out: sae(out, 2.0))) < 1e-12

    def test_a_watched_call_shows_what_went_in_and_out(self, model: LanguageModel) -> None:
        sae = model.transformer.h[1].mlp.sae
        with model.trace(TOKENS):
            mlp = model.transformer.h[1].mlp.output
            out = sae(mlp, hook=True, scale=2.0)
            given, (args, kwargs), gave = sae.input, sae.inputs, sae.output
            inner = model.transformer.h[1].mlp.sae.encoder.output
        assert torch.equal(given, mlp) and torch.equal(args[0], mlp) and kwargs == {"scale": 2.0}
        assert torch.equal(gave, out) and error(inner, sae._module.encoder(mlp)) < 1e-12

    def test_what_was_watched_and_nobody_holds_is_not_computed(self, model: LanguageModel) -> None:
        calls: list[int] = []
        model._model.blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
        with model.trace(TOKENS):
            model.transformer.h[1].mlp.sae(model.transformer.h[1].mlp.output, hook=True)
            first = model.transformer.h[0].output[0]
        assert calls == [] and first.isfinite().all()

    def test_values_belong_to_the_body_that_called(self, model: LanguageModel) -> None:
        sae = model.transformer.h[1].mlp.sae
        with model.trace(TOKENS):
            sae(model.transformer.h[1].mlp.output, hook=True)
        with pytest.raises(TraceError, match="has not called it with hook=True"), model.trace(TOKENS):
            sae(model.transformer.h[1].mlp.output)
            _ = sae.output
        with pytest.raises(TraceError, match="inside a trace"):
            _ = sae.output
        assert not any(module._forward_hooks for module in sae.modules())
        with pytest.raises(AttributeError, match="the call is over"):
            sae.output = 1

    def test_it_has_gradients(self, model: LanguageModel) -> None:
        sae = model.transformer.h[1].mlp.sae
        with model.trace(TOKENS):
            loss = (sae(model.transformer.h[1].mlp.output) ** 2).mean()
        loss.backward()
        assert all(parameter.grad is not None for parameter in sae.parameters())

    def test_it_is_part_of_the_model(self, model: LanguageModel) -> None:
        path = "transformer.h.1.mlp.sae"
        names = [name for name, _ in model.named_modules()]
        assert names[names.index(path) - 1 :][:4] == [
            "transformer.h.1.mlp.dropout", path, f"{path}.encoder", f"{path}.decoder",
        ]  # fmt: skip
        assert (
            f"{path}.encoder.weight" in dict(model.named_parameters()) and f"{path}.decoder.bias" in model.state_dict()
        )
        assert model.get(f"{path}.encoder.weight") is model.transformer.h[1].mlp.sae._module.encoder.weight
        assert "(sae): Coder(\n" in str(model) and "(0): GPT2Block" in str(model)
        assert model.blocks[1].mlp.sae == model.transformer.h[1].mlp.sae and "sae" in dir(model.blocks[1].mlp)
        assert model.float().transformer.h[1].mlp.sae.encoder.weight.dtype == torch.float32
        assert model.transformer.h[1].mlp.sae.threshold == 0.5
        del model.transformer.h[1].mlp.sae
        assert "sae" not in str(model) and not hasattr(model.transformer.h[1].mlp, "sae")

    def test_the_model_itself_takes_one_and_a_list_of_them(self, model: LanguageModel) -> None:
        model.probes = nn.ModuleList(nn.Linear(48, 2).double() for _ in range(3))
        with model.trace(TOKENS):
            scores = [probe(block.output[0]) for probe, block in zip(model.probes, model.transformer.h, strict=True)]
            last = model.probes[-1](model.transformer.h[-1].output[0], hook=True)
            seen = model.probes[-1].output
        assert len(model.probes) == 3 and scores[0].shape == (2, 9, 2) and torch.equal(last, scores[2])
        assert torch.equal(seen, last) and "(probes): ModuleList(" in str(model)

    @pytest.mark.parametrize(
        ("where", "name", "complaint"),
        [
            ("transformer.h.1", "mlp", "part of the model"),
            ("transformer.h.1", "hook_resid_post", "there already"),
            ("transformer.h.1", "skip", "there already"),
            ("transformer.h.1", "a.b", "no name"),
            ("transformer.h.1.mlp", "output", "takes a tensor"),
            ("transformer.h", "sae", "the list of blocks"),
            ("blocks.1.hook_resid_post", "sae", "a hook point"),
        ],
    )
    def test_a_name_that_is_taken_is_refused(self, model: LanguageModel, where: str, name: str, complaint: str) -> None:
        with pytest.raises((ValueError, TypeError), match=complaint), model.trace(TOKENS):
            setattr(model.get(where), name, Coder())
        with pytest.raises(AttributeError, match="stays"):
            del model.transformer.h[1].attn
        with pytest.raises(ValueError, match="there already"):
            model.order = Coder()
