"""The public API is a list, and changing it is a decision: change it here too."""

import nnzoo

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
