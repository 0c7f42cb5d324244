"""Every Hugging Face path, read and written through a trace, against forward hooks on transformers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from families import PLAIN, error, folder, ids, prompt, theirs
from nnzoo import LanguageModel
from nnzoo.weights.paths import PATHS

TOKENS = prompt(2, 12)  # longer than Mistral's window
NEVER_CALLED = {"transformer.h.{i}.attn.attn_dropout"}  # functional in transformers' kernels


def paths(family: str, what: str) -> list[str]:
    """The paths whose input or output holds floating-point numbers, for the middle layer."""
    found = []
    for path, entry in PATHS[family].items():
        value = getattr(entry, what)
        value = value[0] if isinstance(value, tuple) else value
        whole = value is None or value.hook in ("hook_tokens", "hook_positions") or path in NEVER_CALLED
        if not whole and not (path == "model.rotary_emb" and what == "input"):
            found.append(path.replace("{i}", "1"))
    return found


CASES = [
    pytest.param(family, setting, path, id=f"{family}-{path or 'root'}")
    for family, setting in PLAIN
    for path in paths(family, "output")
]
INPUT_CASES = [
    pytest.param(family, setting, path, id=f"{family}-{path}")
    for family, setting in PLAIN
    for path in paths(family, "input")
]


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
    return {family: LanguageModel(folder(family, setting)) for family, setting in PLAIN}


def first(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    return output[0] if isinstance(output, tuple) else output["logits" if "logits" in output else "last_hidden_state"]


def module_of(envoy_root: Any, path: str) -> Any:
    return envoy_root.get(path) if path else envoy_root


def change(value: Tensor) -> Tensor:
    return value * 1.25 + 0.125


@pytest.mark.parametrize(("family", "setting", "path"), CASES)
def test_an_output_equals_transformers(models: dict, family: str, setting: str, path: str) -> None:
    seen: list[Tensor] = []
    model = theirs(family, setting)
    handle = model.get_submodule(path).register_forward_hook(lambda *args: seen.append(first(args[-1])))
    with torch.no_grad():
        model(TOKENS)
    handle.remove()
    with models[family].trace(TOKENS):
        value = first(module_of(models[family], path).output)
        shape = value.shape  # known before anything runs
    # transformers computes what depends on positions alone for one row; here every prompt has its own
    alone = path in ("transformer.wpe", "model.rotary_emb")
    expected = seen[0].expand(2, -1, -1) if alone else seen[0]
    assert shape == expected.shape
    assert error(value, expected) < 1e-10


@pytest.mark.parametrize(("family", "setting", "path"), INPUT_CASES)
def test_an_input_equals_transformers(models: dict, family: str, setting: str, path: str) -> None:
    seen: list[Tensor] = []
    keyword: list[str] = []  # by which transformers passes it; none: by position
    model = theirs(family, setting)

    def look(module: object, args: tuple, kwargs: dict) -> None:
        seen.append(args[0] if args else next(iter(kwargs.values())))
        keyword.extend([] if args else [next(iter(kwargs))])

    handle = model.get_submodule(path).register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad():
        model(TOKENS)
    handle.remove()
    with models[family].trace(TOKENS):
        module = module_of(models[family], path)
        value, (args, kwargs) = module.input, module.inputs
    assert error(value, seen[0]) < 1e-10
    assert [*kwargs] == keyword and torch.equal([*args, *kwargs.values()][0], value)


@pytest.mark.parametrize(("family", "setting"), PLAIN)
def test_ids_are_given_as_transformers_gives_them(models: dict, family: str, setting: str) -> None:
    base = "transformer" if family == "gpt2" else "model"
    embedding = f"{base}.wte" if family == "gpt2" else f"{base}.embed_tokens"
    seen: dict[str, tuple] = {}

    def look(path: str) -> Callable[[object, tuple, dict], None]:
        return lambda module, args, kwargs: seen.update({path: (args, kwargs)})

    model = theirs(family, setting)
    handles = [
        model.get_submodule(path).register_forward_pre_hook(look(path), with_kwargs=True)
        for path in ("", base, embedding)
    ]
    model(input_ids=TOKENS)
    for handle in handles:
        handle.remove()
    for path, (args, kwargs) in seen.items():
        with models[family].trace(TOKENS):
            ours, named = module_of(models[family], path).inputs
        assert [*named] == ([] if args else ["input_ids"]), path
        assert torch.equal([*ours, *named.values()][0], [*args, *kwargs.values()][0])


@pytest.mark.parametrize("in_place", [False, True], ids=["replaced", "edited"])
@pytest.mark.parametrize(("family", "setting", "path"), CASES)
def test_a_written_output_gives_the_logits_of_transformers(
    models: dict, family: str, setting: str, path: str, in_place: bool
) -> None:
    model = theirs(family, setting)

    def hook(module: object, args: object, output: Any) -> Any:
        if isinstance(output, Tensor):
            return change(output)
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        output["logits" if "logits" in output else "last_hidden_state"] = change(first(output))
        return output

    handle = model.get_submodule(path).register_forward_hook(hook)
    with torch.no_grad():
        expected = model(TOKENS).logits
    handle.remove()
    ours = models[family]
    with ours.trace(TOKENS):
        module = module_of(ours, path)
        if in_place:
            first(module.output)[:] = change(first(module.output))
        elif isinstance(module.output, Tensor):
            module.output = change(module.output)
        else:
            module.output[0] = change(module.output[0])
        logits = ours.output
    assert error(logits, expected) < 1e-10


@pytest.mark.parametrize("in_place", [False, True], ids=["replaced", "edited"])
@pytest.mark.parametrize(("family", "setting", "path"), INPUT_CASES)
def test_a_written_input_gives_the_logits_of_transformers(
    models: dict, family: str, setting: str, path: str, in_place: bool
) -> None:
    model = theirs(family, setting)

    def hook(module: object, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, {**kwargs, name: change(kwargs[name])}

    handle = model.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True)
    with torch.no_grad():
        expected = model(TOKENS).logits
    handle.remove()
    ours = models[family]
    with ours.trace(TOKENS):
        module = module_of(ours, path)
        if in_place:
            module.input[:] = change(module.input)
        else:
            module.inputs = ((change(module.input),), {})
        logits = ours.output
    assert error(logits, expected) < 1e-10


@ids(PLAIN)
def test_attention_patterns_equal_those_of_transformers(models: dict, family: str, setting: str) -> None:
    with torch.no_grad():
        expected = theirs(family, setting, attention="eager")(TOKENS, output_attentions=True).attentions
    blocks = models[family].get("transformer.h" if family == "gpt2" else "model.layers")
    with models[family].trace(TOKENS):
        got = [(b.attn if family == "gpt2" else b.self_attn).output[1] for b in blocks]
    for one, pattern in zip(got, expected, strict=True):
        # transformers' eager LLaMA takes its softmax in float32, in a float64 model too
        assert error(one, pattern) < (1e-10 if family == "gpt2" else 1e-5)


@ids(PLAIN)
def test_generation_is_token_for_token_that_of_transformers(models: dict, family: str, setting: str) -> None:
    tokens = prompt(3, 20)
    mask = torch.ones_like(tokens)
    mask[0, :7] = 0
    mask[1, :1] = 0
    expected = theirs(family, setting).generate(
        tokens, attention_mask=mask, max_new_tokens=30, do_sample=False, pad_token_id=0
    )
    got = models[family].generate(tokens, attention_mask=mask, max_new_tokens=30)
    assert torch.equal(got[:, 20:][expected[:, 20:] != 0], expected[:, 20:][expected[:, 20:] != 0])
