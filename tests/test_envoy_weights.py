"""Parameters, dtypes and calls of a whole model, by Hugging Face's names and against transformers."""

import copy

import pytest
import torch
from torch import Tensor, nn

from families import PLAIN, error, folder, ids, prompt, settings_of, theirs
from nnzoo import LanguageModel
from nnzoo.arguments import check_path
from nnzoo.tracing.recorder import TraceError

TOKENS = prompt(2, 9)
NAMED = [*PLAIN, ("gpt2", "untied"), ("llama", "tied"), ("llama", "attention_bias"), ("llama", "mlp_bias")]


def fresh(family: str = "gpt2", setting: str = "default", **arguments: object) -> LanguageModel:
    return LanguageModel(folder(family, setting), **arguments)


class TestParameters:
    @ids(NAMED)
    def test_names_order_and_values_are_those_of_transformers(self, family: str, setting: str) -> None:
        ours, model = fresh(family, setting), theirs(family, setting)
        for mine, other in (
            (dict(ours.named_parameters()), dict(model.named_parameters())),
            (ours.state_dict(), model.state_dict()),
        ):
            assert list(mine) == list(other)
            assert all(torch.equal(mine[name], other[name]) for name in mine)
        block = ours.get("transformer.h.1" if family == "gpt2" else "model.layers.1")
        assert list(block.state_dict()) == list(model.get_submodule(block.path).state_dict())
        assert list(block.state_dict(prefix="x.")) == [f"x.{name}" for name in block.state_dict()]

    @ids(NAMED)
    def test_they_are_counted_as_transformers_counts(self, family: str, setting: str) -> None:
        ours, model = fresh(family, setting), theirs(family, setting)
        assert ours.num_parameters() == model.num_parameters()
        assert ours.num_parameters(exclude_embeddings=True) == model.num_parameters(exclude_embeddings=True)
        ours.requires_grad_(False).lm_head.requires_grad_()
        assert ours.num_parameters(only_trainable=True) == ours.lm_head.weight.numel()

    def test_a_parameter_is_the_native_one(self) -> None:
        model = fresh()
        assert model.lm_head.weight is model.transformer.wte.weight is model._model.embed.weight
        assert model.get_parameter("transformer.h.1.mlp.c_fc.bias") is model._model.blocks[1].mlp.up.bias
        assert model.blocks[1].mlp.up.weight is model.transformer.h[1].mlp.c_fc.weight
        with pytest.raises(AttributeError, match="a module, not a parameter"):
            model.get_parameter("transformer.h.1.mlp")

    def test_gradients_come_and_go(self) -> None:
        model = fresh()
        model(TOKENS, labels=TOKENS).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        model.transformer.h[0].zero_grad()
        assert model.transformer.h[0].ln_1.weight.grad is None and model.transformer.h[1].ln_1.weight.grad is not None
        model.zero_grad(set_to_none=False)
        assert model.transformer.h[1].ln_1.weight.grad.abs().max() == 0


class TestLoadingAState:
    @ids(PLAIN)
    def test_a_state_of_transformers_is_loaded(self, family: str, setting: str) -> None:
        model, other = fresh(family, setting), copy.deepcopy(theirs(family, setting))
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(0.5)
            expected = other(TOKENS).logits
        assert model.load_state_dict(other.state_dict()) == ([], [])
        assert error(model(TOKENS), expected) < 1e-10

    def test_a_part_is_loaded_alone_and_a_tied_head_may_be_missing(self) -> None:
        model = fresh()
        state = model.state_dict()
        assert model.load_state_dict({n: v for n, v in state.items() if n != "lm_head.weight"}).missing_keys == []
        model.transformer.h[0].load_state_dict({n: v * 0 for n, v in model.transformer.h[1].state_dict().items()})
        assert model.transformer.h[0].mlp.c_fc.weight.abs().max() == 0 < model.transformer.h[1].mlp.c_fc.weight.norm()

    def test_what_does_not_fit_is_named_and_nothing_is_copied(self) -> None:
        model = fresh()
        state = {name: value * 2 for name, value in model.state_dict().items()}
        before = model.transformer.wpe.weight.clone()
        for change, complaint in (
            ({"transformer.wpe.weight": torch.zeros(3, 48)}, r"of another shape: transformer.wpe.weight is \[3, 48\]"),
            ({"transformer.h.9.x": torch.zeros(3)}, "not known: transformer.h.9.x"),
            ({"lm_head.weight": state["lm_head.weight"] + 1}, "different, though tied here: .*lm_head.weight"),
        ):
            with pytest.raises(RuntimeError, match=complaint):
                model.load_state_dict({**state, **change})
        del state["transformer.wpe.weight"]
        with pytest.raises(RuntimeError, match=r"missing: transformer\.wpe\.weight"):
            model.load_state_dict(state)
        assert torch.equal(model.transformer.wpe.weight, before)
        assert model.load_state_dict({**state, "x": before}, strict=False) == (["transformer.wpe.weight"], ["x"])


class TestMoving:
    @pytest.mark.parametrize("dispatched", [True, False])
    @pytest.mark.parametrize(
        ("way", "dtype"),
        [("float", torch.float32), ("half", torch.float16), ("bfloat16", torch.bfloat16), ("double", torch.float64)],
    )
    def test_a_dtype_is_known_to_weights_and_traces(self, dispatched: bool, way: str, dtype: torch.dtype) -> None:
        model = fresh("llama", "tied", dispatch=dispatched, dtype="float32")
        assert getattr(model, way)() is model and model.dtype == dtype
        assert (model._native is not None) == dispatched, "weights are read when they are needed"
        with model.trace(TOKENS):
            hidden = model.model.layers[1].output[0]
            assert hidden.dtype == dtype
            model.model.layers[1].output = hidden * 2
            logits = model.output
        assert logits.dtype == dtype == model.lm_head.weight.dtype == model(TOKENS).dtype
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert model.model.layers[0].dtype == dtype and model.model.device == torch.device("cpu")

    def test_values_are_those_of_transformers_in_that_dtype(self) -> None:
        model = fresh("llama").to(torch.bfloat16)
        expected = copy.deepcopy(theirs("llama", "default")).to(torch.bfloat16)(TOKENS).logits
        assert error(model(TOKENS), expected) < 0.05

    def test_a_native_model_that_was_converted_by_itself_is_noticed(self) -> None:
        model = fresh()
        model._model.float()
        with model.trace(TOKENS):
            hidden = model.transformer.h[1].output[0]
            assert hidden.dtype == torch.float32
            model.transformer.h[1].output = hidden * 2
        assert hidden.dtype == model.dtype == torch.float32

    def test_a_device_is_kept_for_weights_to_come(self) -> None:
        model = fresh(device="meta").cpu()
        assert model.device == torch.device("cpu") and model(TOKENS).device == torch.device("cpu")

    def test_what_cannot_be_is_refused(self) -> None:
        model = fresh()
        with pytest.raises(TypeError, match="none that models run in"):
            model.to(torch.int8)
        with pytest.raises(TraceError, match="inside a trace"), model.trace(TOKENS):
            model.float()
        assert model.dtype == torch.float64

    def test_training_without_its_dropout_is_refused(self) -> None:
        with pytest.raises(NotImplementedError, match=r"embd_pdrop=0.1, .*in eval\(\)"):
            fresh().train()
        model = fresh("llama")
        model.adapter = nn.Dropout()
        assert model.train().training and model.adapter.training
        assert torch.equal(model(TOKENS), fresh("llama")(TOKENS))
        assert not model.eval().training and not model.adapter.training
        assert fresh().eval().training is False


class TestCopying:
    def test_a_deep_copy_has_its_own_weights_and_modules_and_runs(self) -> None:
        model = fresh(rename={"transformer.h": "layers"})
        model.transformer.h[0].probe = nn.Linear(48, 1).double()
        other, name = copy.deepcopy(model), "transformer.h.0.probe"
        assert not other.dispatched and other.repo_id == str(folder("gpt2", "default"))
        before = model(TOKENS)
        with torch.no_grad():
            other.transformer.h[0].mlp.c_fc.weight.zero_()
        other.float()
        assert other.dispatched and model.get(name)._module is not other.get(name)._module
        with model.trace(TOKENS), other.trace(TOKENS):
            logits, changed, bias = model.output, other.output, other.layers[0].mlp.c_fc.output[0, 0]
        assert torch.equal(logits, before) and logits.dtype == torch.float64 and model.dtype == torch.float64
        assert torch.equal(bias, other.transformer.h[0].mlp.c_fc.bias) and error(changed.double(), logits) > 1e-3

    def test_a_parameter_is_edited_in_place_as_in_a_module(self) -> None:
        model = fresh()
        before = model.lm_head.weight.detach().clone()
        with torch.no_grad():
            model.lm_head.weight *= 2
        assert torch.equal(model._model.unembed.weight, before * 2)
        with pytest.raises(AttributeError, match="edit it in place"):
            model.lm_head.weight = nn.Parameter(before)


class TestCalling:
    @ids(PLAIN)
    def test_logits_and_loss_are_those_of_transformers(self, family: str, setting: str) -> None:
        model, hf = fresh(family, setting), theirs(family, setting)
        labels = TOKENS.clone()
        labels[0, :4] = -100
        with torch.no_grad():
            ours, other = model(input_ids=TOKENS, labels=labels, use_cache=False), hf(TOKENS, labels=labels)
        assert type(ours) is Tensor and ours.shape == (2, 9, 97) and torch.equal(ours, ours.logits)
        assert error(ours.logits, other.logits) < 1e-10
        assert error(ours.loss, other.loss) < 1e-6  # transformers takes it in float32
        assert model(TOKENS).loss is None

    def test_arguments_of_the_native_model_go_on(self) -> None:
        model = fresh()
        hidden = model(TOKENS, stop_at_layer=1)
        assert hidden.shape == (2, 9, 48) and not hasattr(hidden, "logits")
        assert model(TOKENS, return_type="loss").ndim == 0

    def test_what_would_make_a_difference_is_refused(self) -> None:
        model = fresh()
        for arguments in ({"output_hidden_states": True}, {"past_key_values": ()}, {"input_ids": TOKENS}):
            with pytest.raises(TypeError, match=next(iter(arguments))):
                model(TOKENS, **arguments)
        with pytest.raises(ValueError, match="labels ask for logits"):
            model(TOKENS, labels=TOKENS, stop_at_layer=1)
        with pytest.raises(ValueError, match="labels"):
            model(TOKENS, labels=TOKENS[:, 1:])

    def test_a_generations_result_has_nnsights_name(self) -> None:
        model = fresh()
        with model.trace(TOKENS) as tracer:
            one, other = model.generator.output, tracer.result
        assert torch.equal(one, other) and "tracer.result" in repr(model.generator)


class TestConfig:
    @ids(settings_of())
    def test_it_answers_to_the_names_of_transformers(self, family: str, setting: str) -> None:
        model, theirs_ = fresh(family, setting), theirs(family, setting).config
        names = (
            "vocab_size hidden_size num_hidden_layers num_attention_heads max_position_embeddings model_type".split()
        )
        names += "tie_word_embeddings eos_token_id bos_token_id".split()
        if family == "gpt2":
            names += "n_embd n_layer n_head n_positions activation_function layer_norm_epsilon attn_pdrop".split()
        else:
            names += "num_key_value_heads intermediate_size hidden_act rms_norm_eps head_dim".split()
        for name in names:
            assert getattr(model.config, name) == getattr(theirs_, name), name
        assert model._model.config is model.config and model.config == model._checkpoint.config

    def test_it_stays_frozen(self) -> None:
        with pytest.raises(AttributeError):
            fresh().config.num_hidden_layers = 5


class TestArguments:
    def test_what_makes_no_difference_is_accepted(self) -> None:
        model = LanguageModel(
            folder("gpt2", "default"), device_map={"": "cpu"}, torch_dtype=torch.float32, dtype="float32",
            attn_implementation="eager", low_cpu_mem_usage=True, trust_remote_code=False, use_safetensors=True,
            task="text-generation", local_files_only=True, dispatch=True,
        )  # fmt: skip
        assert model.dtype == torch.float32 and model._native is not None

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ({"trust_remote_code": True}, "never run"),
            ({"trust_remote_code": 0}, "never run"),
            ({"attn_implementation": "paged"}, "kernels"),
            ({"load_in_8bit": True}, "not quantized"),
            ({"quantization_config": object()}, "not quantized"),
            ({"use_safetensors": False}, "pickle"),
            ({"output_hidden_states": True}, r"h\[i\].output"),
            ({"use_auth_token": "x"}, "called token="),
            ({"device_map": {"h": "cpu", "lm_head": "cuda:0"}}, "one device"),
            ({"device_map": "balanced"}, "one device"),
            ({"block_ouput": "tensor"}, "did you mean block_output"),
            ({"xyzzy": 1}, "it knows device,"),
            ({"tokenizer": "gpt2"}, "an object, not a name"),
            ({"tokenizer_kwargs": {"padding_side": "right"}}, "padded on the left"),
        ],
    )
    def test_what_would_make_a_difference_is_refused_by_name(self, arguments: dict, complaint: str) -> None:
        with pytest.raises(TypeError, match=complaint):
            LanguageModel(folder("gpt2", "default"), **arguments)

    def test_two_names_for_one_thing_must_agree(self) -> None:
        with pytest.raises(ValueError, match="contradict"):
            fresh(dtype=torch.float32, torch_dtype="float16")
        with pytest.raises(ValueError, match="contradict"):
            fresh(device="cpu", device_map="cuda")
        with pytest.raises(ValueError, match='block_output is "tuple" or "tensor"'):
            fresh(block_output="list")

    def test_a_model_object_says_how_to_get_here(self) -> None:
        with pytest.raises(TypeError, match="save_pretrained"):
            check_path(theirs("gpt2", "default"))

    def test_a_tokenizer_pads_on_the_left_so_that_each_row_ends_with_its_last_token(self) -> None:
        short, long = "The capital of France is", "When Mary and John went to the store, John gave a drink to"
        model, own = LanguageModel("nnzoo/tiny-gpt2"), LanguageModel("nnzoo/tiny-gpt2").tokenizer
        own.padding_side, own.pad_token = "right", None
        for one in (model, LanguageModel("nnzoo/tiny-gpt2", tokenizer=own)):
            table = one.tokenizer([short, long], padding=True, return_tensors="pt")
            ids = one.generate(table, max_new_tokens=1)
            assert torch.equal(ids[:1, -1], one.generate(short, max_new_tokens=1)[:, -1])
            assert torch.equal(table.input_ids, one.prepare([short, long]).tokens)

    def test_a_tokenizer_gets_its_settings(self) -> None:
        class Words:
            pad_token = None

        model = fresh(tokenizer=Words(), tokenizer_kwargs={"pad_token": "<pad>", "padding_side": "left"})
        assert model.tokenizer.pad_token == "<pad>"
        assert (
            LanguageModel("nnzoo/tiny-gpt2", tokenizer_kwargs={"model_max_length": 7}).tokenizer.model_max_length == 7
        )
