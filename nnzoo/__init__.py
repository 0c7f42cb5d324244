"""Transformer language models to look inside: clean models, named hook points, lazy traces.

>>> from nnzoo import LanguageModel
>>> model = LanguageModel("nnzoo/tiny-gpt2")
>>> with model.trace("The capital of France is"):
...     hidden = model.transformer.h[1].output[0].save()
>>> hidden.shape[0]
1
"""

from typing import NoReturn as _NoReturn

from nnzoo.absent import absent as _absent
from nnzoo.architectures.activation_cache import ActivationCache
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.hooks import HookPoint
from nnzoo.architectures.names import get_act_name
from nnzoo.config import CONFIG
from nnzoo.debugging import debug, diff
from nnzoo.envoys.envoy import Envoy
from nnzoo.language_model import LanguageModel
from nnzoo.tracing.functions import GraphError
from nnzoo.tracing.graph_object import Graph
from nnzoo.tracing.saving import save
from nnzoo.tracing.session import session
from nnzoo.transformers_model import TransformersModel
from nnzoo.weights import load

__all__ = [
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


def __getattr__(name: str) -> _NoReturn:
    raise _absent("nnzoo", name)
