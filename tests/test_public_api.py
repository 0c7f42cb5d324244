"""The public API is a list, and changing it is a decision: change it here too."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nnzoo
from nnzoo import LanguageModel

PUBLIC = [
    "CONFIG",
    "ActivationCache",
    "Envoy",
    "Graph",
    "GraphError",
    "HookPoint",
    "HookedModel",
    "LanguageModel",
    "TransformersModel",
    "debug",
    "diff",
    "get_act_name",
    "load",
    "save",
    "session",
]


def test_the_public_names_are_these():
    assert list(nnzoo.__all__) == PUBLIC


def test_the_public_names_are_sorted():
    assert list(nnzoo.__all__) == sorted(nnzoo.__all__, key=lambda name: (not name.isupper(), name))


def test_every_public_name_is_there_and_documented():
    undocumented = [name for name in nnzoo.__all__ if not getattr(nnzoo, name).__doc__]
    assert not undocumented


def test_type_checkers_see_the_names_where_they_are_found():
    source = ast.parse(Path(nnzoo.__file__).read_text())
    (block,) = (node for node in source.body if isinstance(node, ast.If))
    seen = {alias.name: one.module for one in block.body if isinstance(one, ast.ImportFrom) for alias in one.names}
    assert seen == {name: f"nnzoo.{home}" for name, home in nnzoo._HOME.items()}
    assert seen.keys() == set(PUBLIC)


@pytest.mark.parametrize(
    "name", ["Graph", "debug", "load", "save", "session", "analysis", "transformer_lens.HookedTransformer"]
)
def test_a_name_is_found_by_itself(name):
    """In a process that has asked for nothing else: one may need what another one happens to import."""
    code = "import nnzoo, sys; assert 'torch' not in sys.modules; "
    code += f"nnzoo.{name}; assert {name.split('.')[0]!r} in dir(nnzoo)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("list", "ordinary Python: plain"), ("apply", "call the function itself"), ("NNsight", "LanguageModel")],
)
def test_a_name_of_nnsights_says_what_stands_for_it(name: str, hint: str) -> None:
    with pytest.raises(AttributeError, match=f"nnzoo has no '{name}'; .*{hint}"):
        getattr(nnzoo, name)
    assert not hasattr(nnzoo, "nonsense")


def test_the_inputs_of_an_invoke_are_said_to_be_at_hook_tokens() -> None:
    model = LanguageModel("nnzoo/tiny-llama")
    with model.trace() as tracer, tracer.invoke("The capital of France is") as invoker:
        with pytest.raises(AttributeError, match=r"model\.hook_tokens\.output"):
            _ = invoker.inputs
        ids = model.hook_tokens.output
    assert ids.tolist() == model.tokenizer(["The capital of France is"]).input_ids
