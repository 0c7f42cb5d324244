"""A module of the model applied to a value, outside of any pass: `model.lm_head(model.transformer.ln_f(hidden))`."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nnzoo.architectures.activations import ACTIVATIONS
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.tracing.functions import ModuleCall
from nnzoo.tracing.infer import map_tensors
from nnzoo.tracing.lazy import first_lazy

if TYPE_CHECKING:
    from nnzoo.envoys.envoy import Envoy
    from nnzoo.language_model import LanguageModel


def apply(envoy: "Envoy", args: tuple, kwargs: dict[str, Any], *, hook: bool) -> Any:
    """What the module gives for values of a body (recorded), or for real ones (at once).

    Raises TypeError for a module that is no function of one tensor, with the reason.
    """
    _check(envoy, hook)
    lazy, recorder = first_lazy((args, kwargs)), envoy._root.elsewhere
    if lazy is None and recorder is not None:
        args, kwargs = map_tensors(recorder.constant, (args, kwargs))
        lazy = first_lazy((args, kwargs))
    if lazy is None:
        return _native(envoy)(*args, **kwargs)

    call = _call(envoy)
    return lazy._recorder.record(call, args, kwargs, shapes=call.shapes)


def _call(envoy: "Envoy") -> ModuleCall:
    return ModuleCall(envoy._place, partial(_native, envoy), _function(envoy, envoy._root.skeleton))


def module_call(model: "LanguageModel", path: str) -> ModuleCall:
    """A module as a function, by a Hugging Face path that may come from anybody: it is looked up in the tables alone.

    Raises LookupError for what is none, TypeError for one that is no function of one tensor.
    """
    found: Any = model
    for name in path.split("."):
        node = getattr(found, "_node", None)
        if node is None:
            raise LookupError(f"there is no module {path!r:.80}")
        if node.item is not None and name.isdecimal() and len(name) < 9 and int(name) < node.n_items:
            found = found[int(name)]
        elif name in node.children:
            found = found._child(name, node.children[name])
        else:
            raise LookupError(f"there is no module {path!r:.80}")
    _check(found, hook=False)
    return _call(found)


def native_module(envoy: "Envoy") -> Any:
    """What an envoy stands for in the native model. AttributeError where that has no module of its own there."""
    node, native = envoy._node, envoy._root._model
    if node.is_hook:
        value: Any = node.entry.output
        return native.hook_points[value.hook.format(i=envoy._layer)]
    if node.module is not None:
        return native.get_submodule(node.module.format(i=envoy._layer))
    path = envoy._path
    parts = [f"{path}.{name}._module" for name, child in node.children.items() if child.module is not None]
    instead = f"there is {', '.join(parts)}" if parts else f"{path}(value) is what it gives"
    raise AttributeError(f"{path} is no module of nnzoo's own model, model._model, so it has no _module; {instead}")


def _native(envoy: "Envoy") -> Callable[..., Tensor]:
    return _function(envoy, envoy._root._model)


def _function(envoy: "Envoy", model: HookedModel) -> Callable[..., Tensor]:
    kind, module = envoy._node.entry.kind, envoy._node.module
    if module is not None:
        return model.get_submodule(module.format(i=envoy._layer))
    return _unchanged if kind == "Dropout" else ACTIVATIONS[model.config.activation]


def _unchanged(x: Tensor) -> Tensor:
    return x


def _check(envoy: "Envoy", hook: bool) -> None:
    path = envoy._path
    if hook:
        raise TypeError(
            f"hook=True is for modules of your own; {path}.output is what the pass computes there, and stays it. "
            f"The call gives its value back: out = model.{path}(value)"
        )
    reason = _reason(envoy)
    if reason is not None:
        raise TypeError(
            f"{path} cannot be called on its own: {reason}. Those that can: norms, MLPs, projections, embeddings, "
            "activations, the head"
        )


def _reason(envoy: "Envoy") -> str | None:
    node = envoy._node
    if node.is_hook:
        return "it is a hook point, a place and no function"
    if node.item is not None:
        return "it is a list of modules"
    if node.entry.kind.endswith("RotaryEmbedding"):
        return "it makes the angles of a pass from its positions"
    if node.entry.record in ("block", "tuple"):
        return (
            "it needs the positions and the mask of a pass, not only a value. To let it see another value in the "
            "pass, set its .input"
        )
    if node.entry.record == "base":
        return "it is a whole pass; model(prompt) runs one, and model.trace(prompt) looks into it"
    return None
