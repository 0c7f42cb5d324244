"""Transformer language models to look inside: clean models, named hook points, lazy traces.

>>> from nnzoo import LanguageModel
>>> model = LanguageModel("nnzoo/tiny-gpt2")
>>> with model.trace("The capital of France is"):
...     hidden = model.transformer.h[1].output[0].save()
>>> hidden.shape[0]
1
"""

from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec
from typing import TYPE_CHECKING
from typing import Any as _Any

from nnzoo.absent import absent as _absent

if TYPE_CHECKING:
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

_HOME = {  # imported when somebody asks for them: who wants a model does not wait for what compares two
    "ActivationCache": "architectures.activation_cache",
    "CONFIG": "config",
    "Envoy": "envoys.envoy",
    "Graph": "tracing.graph_object",
    "GraphError": "tracing.functions",
    "HookPoint": "architectures.hooks",
    "HookedModel": "architectures.hooked_model",
    "LanguageModel": "language_model",
    "TransformersModel": "transformers_model",
    "debug": "debugging",
    "diff": "debugging",
    "get_act_name": "architectures.names",
    "load": "weights",
    "save": "tracing.saving",
    "session": "tracing.session",
}

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


def __getattr__(name: str) -> _Any:
    if name in _HOME:
        value = getattr(_import_module(f"nnzoo.{_HOME[name]}"), name)
    elif not name.startswith("_") and _find_spec(f"nnzoo.{name}"):
        value = _import_module(f"nnzoo.{name}")  # nnzoo.analysis, without a further import
    else:
        raise _absent("nnzoo", name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
