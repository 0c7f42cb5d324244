"""The public API is a list, and changing it is a decision: change it here too."""

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
