"""Snippets of the API reference, run as text, so that nothing of them can be bent into shape.

On LLaMA and Mistral a snippet's blocks are called `model.model.layers`.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

import speaking
from families import error
from nnzoo import LanguageModel

FAMILIES = ["gpt2", "llama", "mistral"]
on_every_family = pytest.mark.parametrize("family", FAMILIES)
on_llama_and_mistral = pytest.mark.parametrize("family", ["llama", "mistral"])
PROMPT = "Hello"


def run(snippet: str, family: str, n_layers: int = 7, **names: Any) -> dict[str, Any]:
    """The names that a snippet leaves behind."""
    if family != "gpt2":
        snippet = snippet.replace("model.transformer.h[", "model.model.layers[")
    model = LanguageModel(speaking.folder(family, n_layers))
    scope = {"model": model, "torch": torch, "LanguageModel": LanguageModel, **names}
    exec(compile(snippet, "<a snippet of the API reference>", "exec"), scope)
    return scope


def assert_close(ours: Any, theirs: Tensor, tolerance: float = 1e-9) -> None:
    assert type(ours) is Tensor, "a plain tensor, once the trace has run"
    assert error(ours.detach(), theirs.detach()) < tolerance
