"""Hugging Face's module paths: each has the value that transformers' module has, going in and coming out."""

from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor
from transformers import PreTrainedModel

from checkpoints import DEFAULT
from families import CLASSES, SETTINGS, error, folder, ids, ours, prompt, theirs
from nnzoo.architectures.activation_cache import ActivationCache
from nnzoo.architectures.activations import ACTIVATIONS
from nnzoo.weights import PATHS, Value, load, paths_of, read_config
from nnzoo.weights.paths import ACTIVATION_KINDS

N_LAYERS = 3
WIDE = [  # settings under which more places differ from one another
    *DEFAULT.items(),
    ("gpt2", "upcast"),
    ("gpt2", "untied"),
    ("gpt2", "unscaled_but_by_layer"),
    ("llama", "attention_bias"),
    ("llama", "mlp_bias"),
    ("llama", "head_dim=16"),
    ("llama", "rope=yarn"),
    ("mistral", "window=null"),
]


def of_layer(text: str, layer: int) -> str:
    return text.replace("{i}", str(layer))


def expanded(family: str, setting: str) -> dict[str, Any]:
    """The table with its layers written out: path -> (entry, layer)."""
    table = paths_of(read_config(folder(family, setting)))
    return {
        of_layer(path, i): (module, i)
        for path, module in table.items()
        for i in range(N_LAYERS if "{i}" in path else 1)
    }


def without_layers(names: list[str]) -> list[str]:
    """Paths with the layer as "{i}", each once."""
    parts = [[("{i}" if part.isdigit() else part) for part in name.split(".")] for name in names]
    return list(dict.fromkeys(".".join(part) for part in parts))


@pytest.mark.parametrize("family", CLASSES)
def test_the_paths_are_those_of_named_modules_in_their_order(family):
    names = [name for name, _ in theirs(family, DEFAULT[family]).named_modules()]
    assert list(PATHS[family]) == without_layers(names)


@ids([(family, s) for family in SETTINGS for s in SETTINGS[family] if s in DEFAULT.values() or s.startswith("act=")])
def test_the_kinds_are_the_class_names(family, setting):
    modules = dict(theirs(family, setting).named_modules())
    table = expanded(family, setting)
    assert {path: module.kind for path, (module, _) in table.items()} == {
        p: type(m).__name__ for p, m in modules.items()
    }


def test_every_activation_has_its_kind():
    assert ACTIVATION_KINDS.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("family", CLASSES)
def test_every_hook_point_is_there_and_every_view_fits_it(family):
    points = ours(family, DEFAULT[family]).hook_points
    for module, layer in expanded(family, DEFAULT[family]).values():
        outputs = module.output if isinstance(module.output, tuple) else (module.output,)
        for value in filter(None, (module.input, *outputs)):
            axes = points[of_layer(value.hook, layer)].axes.split()
            assert value.view is None or len(value.view.split(" -> ")[0].split()) == len(axes)


class Witness:
    """The first argument and the output of every call of every module."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        for name, module in model.named_modules():
            module.register_forward_hook(lambda *call, name=name: self.keep(name, *call), with_kwargs=True)

    def keep(self, name: str, module: Any, args: tuple, kwargs: dict, output: Any) -> None:
        self.inputs[name] = args[0] if args else next(iter(kwargs.values()))
        self.outputs[name] = output


def plain(output: Any) -> tuple[Tensor, ...]:
    """The tensors of a module's output that the table has."""
    if isinstance(output, tuple):
        return output
    for name in ("logits", "last_hidden_state"):
        if name in getattr(output, "keys", tuple)():
            return (output[name],)
    return (output,)


def assert_same(value: Value, layer: int, cache: ActivationCache, theirs: Tensor, bound: float) -> None:
    a = cache[of_layer(value.hook, layer)]
    a = rearrange(a, value.view) if value.view else a
    assert error(a.double(), theirs.expand_as(a).double()) < bound  # positions have one row for the whole batch there


RUNS = [(torch.float64, "sdpa"), (torch.float64, "eager"), (torch.float32, "eager")]


@pytest.mark.parametrize(("dtype", "attention"), RUNS, ids=lambda value: str(value).removeprefix("torch."))
@ids(WIDE)
def test_every_input_and_output_is_transformers(family, setting, dtype, attention):
    if setting == "upcast" and (dtype, attention) == (torch.float64, "eager"):
        pytest.skip("transformers has this kernel in float32 only")
    path = folder(family, setting)
    model = CLASSES[family][1].from_pretrained(path, dtype=dtype, attn_implementation=attention)
    witness, tokens = Witness(model), prompt(2, 20)
    with torch.no_grad():
        model(tokens)
        _, cache = load(path, dtype=dtype).run_with_cache(tokens, names_filter=lambda name: True)
    # LLaMA's eager softmax is in float32 even in float64; sdpa's, like ours, is not, but it has no pattern to show
    exact = dtype == torch.float64 and (family == "gpt2" or attention == "sdpa")
    bound = 1e-10 if exact else 1e-4
    compared = set()
    for path, (module, layer) in expanded(family, setting).items():
        if path not in witness.outputs:
            continue
        assert_same(module.input, layer, cache, witness.inputs[path], bound)
        wanted = module.output if isinstance(module.output, tuple) else (module.output,)
        for value, b in zip(wanted, plain(witness.outputs[path]), strict=True):
            if b is not None:
                assert_same(value, layer, cache, b, bound)
        compared.add(path)
    silent = set(expanded(family, setting)) - compared
    uncalled = {"h", "layers"} if (setting, attention) == ("upcast", "eager") else {"h", "layers", "attn_dropout"}
    assert {path.split(".")[-1] for path in silent} <= uncalled


@pytest.mark.parametrize("family", CLASSES)
def test_record_tells_how_output_answers(family):
    records = {module.record: path for path, module in PATHS[family].items()}
    assert records.keys() == {"tensor", "block", "tuple", "base", "logits"}
    for module in PATHS[family].values():
        assert isinstance(module.output, tuple) == (module.record == "tuple")
        assert (module.input is None) == (module.output is None) == (module.kind == "ModuleList")
