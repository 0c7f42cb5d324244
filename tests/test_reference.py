"""Every snippet of the API reference, as it stands there, gives the values of transformers on the same weights.

Only names of checkpoints differ. The chapters here: loading, one prompt, values and paths; test_reference_runs.py has
those that run a model more than once, or backwards.
"""

import pytest
import torch
from torch import Tensor

import nnzoo
from families import error
from reference_values import Theirs
from snippets import PROMPT, assert_close, on_every_family, on_llama_and_mistral, run

# --- LanguageModel ---------------------------------------------------------------------------------------------------


@on_every_family
def test_basic_loading_and_tokenizer_settings(family: str) -> None:
    snippet = """
from nnzoo import LanguageModel

# Basic loading
model = LanguageModel("nnzoo/tiny-FAMILY", device_map="auto")

# With custom tokenizer settings
half = LanguageModel(
    "nnzoo/tiny-FAMILY",
    device_map="auto",
    torch_dtype=torch.float16,
)
"""
    scope = run(snippet.replace("FAMILY", family), family)
    assert scope["model"]._model.dtype == torch.float32 and scope["half"]._model.dtype == torch.float16


@on_every_family
def test_model_attributes(family: str) -> None:
    snippet = """
# Access underlying HuggingFace model
underlying = model._model

# Access tokenizer
tokenizer = model.tokenizer

# Model config
config = model._model.config
"""
    scope = run(snippet, family)
    theirs = Theirs(family)
    assert isinstance(scope["underlying"], torch.nn.Module)
    assert error(scope["underlying"](theirs.ids(PROMPT)).detach(), theirs.forward(PROMPT).logits) < 1e-9
    assert scope["tokenizer"].encode("The cat sat") == theirs.tokenizer.encode("The cat sat")
    assert scope["config"].n_layers == theirs.n_layers


# --- Tracing context -------------------------------------------------------------------------------------------------


@on_every_family
def test_basic_tracing(family: str, capsys: pytest.CaptureFixture) -> None:
    snippet = """
with model.trace("Hello world") as tracer:
    # Operations are recorded, not executed immediately
    hidden = model.transformer.h[5].output[0].save()
    logits = model.output.save()

# After context, operations execute and saved values are available
print(hidden.shape)
"""
    scope, theirs = run(snippet, family), Theirs(family)
    seen = theirs.forward("Hello world", read=[theirs.block(5)])
    assert_close(scope["hidden"], seen[theirs.block(5)])
    assert_close(scope["logits"], seen.logits)
    assert capsys.readouterr().out == "torch.Size([1, 2, 48])\n"


@on_every_family
def test_tracing_parameters(family: str) -> None:
    snippet = """
with model.trace(
    prompt,            # Input text or tokens
    remote=False,      # Use NDIF remote execution
    validate=True,     # Validate tensor shapes
    scan=True,         # Scan for shape info
) as tracer:
    logits = model.output.save()
"""
    theirs = Theirs(family)
    for prompt in (PROMPT, theirs.ids(PROMPT), theirs.ids(PROMPT)[0].tolist()):
        assert_close(run(snippet, family, prompt=prompt)["logits"], theirs.forward(PROMPT).logits)


def test_tracing_parameters_with_an_empty_body() -> None:
    snippet = """
with model.trace(prompt, remote=False, validate=True, scan=True) as tracer:
    ...
"""
    assert run(snippet, "gpt2", prompt=PROMPT)["tracer"] is not None


# --- Proxy objects ---------------------------------------------------------------------------------------------------


def test_accessing_values() -> None:
    snippet = """
with model.trace("Hello") as tracer:
    # These are Proxy objects
    layer_output = model.transformer.h[5].output[0]
    attention = model.transformer.h[5].attn.output

    # Operations create new Proxies
    mean = layer_output.mean(dim=-1)
    normed = layer_output / layer_output.norm()
"""
    scope, theirs = run(snippet, "gpt2"), Theirs("gpt2")
    seen = theirs.forward(PROMPT, read=["transformer.h.5.output", "transformer.h.5.attn.output"])
    hidden = seen["transformer.h.5.output"]
    assert_close(scope["layer_output"], hidden)
    assert_close(scope["attention"][0], seen["transformer.h.5.attn.output"])
    assert_close(scope["attention"][1], theirs.patterns(PROMPT)[5])
    assert_close(scope["mean"], hidden.mean(dim=-1))
    assert_close(scope["normed"], hidden / hidden.norm())


@on_every_family
def test_saving_values(family: str) -> None:
    snippet = """
with model.trace("Hello") as tracer:
    # Must call .save() to access after context
    hidden = model.transformer.h[5].output[0].save()

# Now hidden contains actual tensor
print(hidden.shape)
"""
    theirs = Theirs(family)
    assert_close(run(snippet, family)["hidden"], theirs.forward(PROMPT, read=[theirs.block(5)])[theirs.block(5)])


MODIFICATIONS = {
    "model.transformer.h[5].output[0][:] = 0": lambda h, new, shift: torch.zeros_like(h),
    "model.transformer.h[5].output[0][:] = some_tensor": lambda h, new, shift: new,
    "model.transformer.h[5].output[0][:] *= 0.5": lambda h, new, shift: h * 0.5,
    "model.transformer.h[5].output[0][:] += steering_vector": lambda h, new, shift: h + shift,
}


@on_every_family
@pytest.mark.parametrize("line", MODIFICATIONS)
def test_modifying_values_one_by_one(family: str, line: str) -> None:
    new, shift = torch.randn(1, 2, 48).double(), torch.randn(48).double()
    snippet = f"""
with model.trace("Hello world") as tracer:
    {line}
    logits = model.output.save()
"""
    scope, theirs = run(snippet, family, some_tensor=new, steering_vector=shift), Theirs(family)
    edits = {theirs.block(5): lambda h: MODIFICATIONS[line](h, new, shift)}
    assert_close(scope["logits"], theirs.forward("Hello world", edits=edits).logits)


@on_every_family
def test_modifying_values_in_the_order_of_the_program(family: str) -> None:
    snippet = """
with model.trace("Hello") as tracer:
    # In-place modification
    model.transformer.h[5].output[0][:] = 0

    # Replace with computed value
    model.transformer.h[5].output[0][:] = some_tensor

    # Arithmetic modification
    model.transformer.h[5].output[0][:] *= 0.5
    model.transformer.h[5].output[0][:] += steering_vector

    logits = model.output.save()
"""
    new, shift = torch.randn(1, 1, 48).double(), torch.randn(48).double()
    scope, theirs = run(snippet, family, some_tensor=new, steering_vector=shift), Theirs(family)
    edits = {theirs.block(5): lambda h: new * 0.5 + shift}
    assert_close(scope["logits"], theirs.forward(PROMPT, edits=edits).logits)


@on_every_family
def test_proxy_operations(family: str) -> None:
    snippet = """
with model.trace("Hello") as tracer:
    h = model.transformer.h[5].output[0]

    # Indexing
    first_token = h[:, 0, :]
    last_token = h[:, -1, :]

    # PyTorch operations
    mean = h.mean(dim=-1)
    norm = h.norm()
    transposed = h.transpose(1, 2)

    # Save results
    mean.save()
"""
    scope, theirs = run(snippet, family), Theirs(family)
    h = theirs.forward(PROMPT, read=[theirs.block(5)])[theirs.block(5)]
    assert_close(scope["first_token"], h[:, 0, :])
    assert_close(scope["last_token"], h[:, -1, :])
    assert_close(scope["mean"], h.mean(dim=-1))
    assert_close(scope["norm"], h.norm())
    assert_close(scope["transposed"], h.transpose(1, 2))


# --- Module access patterns ------------------------------------------------------------------------------------------


def test_gpt2_structure() -> None:
    snippet = """
with model.trace("Hello") as tracer:
    # Embeddings
    embed = model.transformer.wte.output.save()
    pos_embed = model.transformer.wpe.output.save()

    # Layer outputs
    layer_out = model.transformer.h[5].output[0].save()

    # Attention
    attn_out = model.transformer.h[5].attn.output.save()

    # MLP
    mlp_out = model.transformer.h[5].mlp.output.save()

    # Final output
    logits = model.output.save()
"""
    places = {
        "embed": "transformer.wte.output",
        "pos_embed": "transformer.wpe.output",
        "layer_out": "transformer.h.5.output",
        "mlp_out": "transformer.h.5.mlp.output",
    }
    scope, theirs = run(snippet, "gpt2"), Theirs("gpt2")
    seen = theirs.forward(PROMPT, read=[*places.values(), "transformer.h.5.attn.output"])
    for name, place in places.items():
        assert_close(scope[name], seen[place])
    assert_close(scope["attn_out"][0], seen["transformer.h.5.attn.output"])
    assert_close(scope["attn_out"][1], theirs.patterns(PROMPT)[5])
    assert_close(scope["logits"], seen.logits)


@on_llama_and_mistral
def test_llama_structure(family: str) -> None:
    snippet = """
with model.trace("Hello") as tracer:
    # Embeddings
    embed = model.model.embed_tokens.output.save()

    # Layer outputs
    layer_out = model.model.layers[10].output[0].save()

    # Attention
    attn_out = model.model.layers[10].self_attn.output.save()

    # MLP
    mlp_out = model.model.layers[10].mlp.output.save()

    # Final output
    logits = model.output.save()
"""
    places = {
        "embed": "model.embed_tokens.output",
        "layer_out": "model.layers.10.output",
        "mlp_out": "model.layers.10.mlp.output",
    }
    scope, theirs = run(snippet, family, n_layers=11), Theirs(family, n_layers=11)
    seen = theirs.forward(PROMPT, read=[*places.values(), "model.layers.10.self_attn.output"])
    for name, place in places.items():
        assert_close(scope[name], seen[place])
    assert_close(scope["attn_out"][0], seen["model.layers.10.self_attn.output"])
    assert_close(scope["attn_out"][1], theirs.patterns(PROMPT)[10], tolerance=1e-5)  # theirs: softmax in float32
    assert_close(scope["logits"], seen.logits)


@on_every_family
def test_finding_module_names(family: str, capsys: pytest.CaptureFixture) -> None:
    snippet = """
# Print model structure
print(model._model)

# Or iterate
for name, module in model._model.named_modules():
    print(name)
"""
    model = run(snippet, family)["model"]
    out = capsys.readouterr().out
    assert type(model._model).__name__ in out
    assert set(out.splitlines()) >= {name for name, _ in model._model.named_modules()}


PATHS = [
    ("gpt2", "transformer.wte", "transformer.h[i]", "transformer.h[i].attn", "transformer.h[i].mlp"),
    ("llama", "model.embed_tokens", "model.layers[i]", "model.layers[i].self_attn", "model.layers[i].mlp"),
    ("mistral", "model.embed_tokens", "model.layers[i]", "model.layers[i].self_attn", "model.layers[i].mlp"),
]


@pytest.mark.parametrize(("family", "path"), [(family, path) for family, *paths in PATHS for path in paths])
def test_common_module_paths(family: str, path: str) -> None:
    scope = run(f'with model.trace("Hello world"):\n    output = model.{path}.output', family, i=3)
    place = f"{path.replace('[i]', '.3')}.output"
    output = scope["output"] if isinstance(scope["output"], Tensor) else scope["output"][0]
    assert_close(output, Theirs(family).forward("Hello world", read=[place])[place])


# --- Utility methods -------------------------------------------------------------------------------------------------


@on_every_family
def test_early_stopping(family: str) -> None:
    snippet = """
blocks = []
for i, block in enumerate(model._model.blocks):
    block.register_forward_pre_hook(lambda *_, i=i: blocks.append(i))

with model.trace("Hello") as tracer:
    hidden = model.transformer.h[5].output[0].save()
    tracer.stop()  # Don't run remaining layers
"""
    scope, theirs = run(snippet, family), Theirs(family)
    assert_close(scope["hidden"], theirs.forward(PROMPT, read=[theirs.block(5)])[theirs.block(5)])
    assert scope["blocks"] == [0, 1, 2, 3, 4, 5]


@on_every_family
def test_validation(family: str) -> None:
    snippet = """
# Validate shapes before execution
with model.trace("Hello", validate=True) as tracer:
    hidden = model.transformer.h[5].output[0].save()
"""
    theirs = Theirs(family)
    assert_close(run(snippet, family)["hidden"], theirs.forward(PROMPT, read=[theirs.block(5)])[theirs.block(5)])


@on_every_family
def test_validation_is_before_execution(family: str) -> None:
    snippet = """
model._model.register_forward_pre_hook(ran.append)
with model.trace("Hello", validate=True) as tracer:
    hidden = model.transformer.h[5].output[0] @ torch.ones(5, 5).double()
"""
    ran: list = []
    with pytest.raises(RuntimeError, match="reduction dim"):
        run(snippet, family, ran=ran)
    assert not ran


@on_every_family
def test_the_result_of_the_call(family: str) -> None:
    snippet = """
with model.trace("Hello") as tracer:
    # Access result of a method call
    result = tracer.result
"""
    assert_close(run(snippet, family)["result"], Theirs(family).forward(PROMPT).logits)


def test_the_key_of_a_remote_service_can_be_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnzoo import CONFIG

    monkeypatch.setenv("NDIF_API_KEY", "your_key")
    assert callable(CONFIG.set_default_api_key)
    assert "CONFIG" in nnzoo.__all__
