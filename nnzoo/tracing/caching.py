"""A cache: the values of many modules at once, after everything that the body does."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from nnzoo.envoys.attached import Attached
from nnzoo.envoys.envoy import Envoy
from nnzoo.tracing.graph import Invoke
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.recorder import TraceError

if TYPE_CHECKING:
    from nnzoo.tracing.tracer import Tracer

Module = Envoy | Attached
Modules = str | Module | Iterable[str | Module] | None
PATTERN = "attn.hook_pattern"  # computed only where somebody names it: the fused kernels have none


class BaseOutput(NamedTuple):
    """What the model below the head gives, as Hugging Face names it."""

    last_hidden_state: Tensor


class Nothing:
    """What was not to be kept."""


@dataclass
class Visit:
    """One call of a module."""

    output: Any = Nothing
    inputs: Any = Nothing

    @property
    def is_there(self) -> bool:
        """Whether the step was made: values of others stay lazy."""
        return not any(isinstance(one, LazyTensor) for one in tree_leaves((self.output, self.inputs)))


class Cache:
    """Reads the modules that were asked for when a trace's body is over."""

    def __init__(
        self,
        tracer: "Tracer",
        modules: Modules = None,
        *,
        include_output: bool = True,
        include_inputs: bool = False,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        detach: bool = True,
    ) -> None:
        if not (include_output or include_inputs):
            raise ValueError("a cache of neither outputs nor inputs keeps nothing")
        self.model, self.recorder = tracer.model, tracer.recorder
        self.include_inputs = include_inputs
        self._include_output, self._detach = include_output, detach
        self._device, self._dtype = device, dtype
        self._named = None if modules is None else [*self._modules(modules)]
        self._visits: dict[str, list[Visit]] = {}

    # --- which modules -------------------------------------------------------------------------------------------

    def _modules(self, modules: Any) -> Iterator[Module]:
        if isinstance(modules, str):
            modules = find(self.model, modules)
        if isinstance(modules, Envoy) and modules._node.item is not None:
            yield from modules  # a list of blocks is never called itself
        elif isinstance(modules, Module):
            yield self._checked(modules)
        elif isinstance(modules, Iterable):
            for one in modules:
                yield from self._modules(one)
        else:
            raise TypeError(f"a cache is of modules or their paths, not of {modules!r:.60}")

    def _checked(self, module: Module) -> Module:
        if module._root is not self.model:
            raise ValueError(f"{module._path or 'the model'} is a module of another model than the trace is of")
        return module

    def _all(self) -> Iterator[Module]:
        for module in self.model.modules():
            if isinstance(module, Attached):
                if module._is_seen():
                    yield module
            elif module._node.entry.output is not None and not _is_pattern(module._node.entry.output):
                yield module

    # --- when the body is over -----------------------------------------------------------------------------------

    def fill(self, tracer: "Tracer", invokes: list[Invoke]) -> None:
        """Read everything, of some prompts, at every step that they all have."""
        decoders = [invoke.decoder for invoke in invokes]
        steps = 1 if None in decoders else max(decoder.options.max_new_tokens for decoder in decoders)
        for step in range(steps):
            with speaking(tracer, invokes, step):
                for module in self._all() if self._named is None else self._named:
                    if not isinstance(module, Attached) or module._seen().step == step:
                        self._visits.setdefault(key_of(module), []).append(self._visit(module))

    def _visit(self, module: Module) -> Visit:
        visit = Visit()
        if self._include_output:
            visit.output = tree_map(self._kept, self._output(module))
        if self.include_inputs:
            visit.inputs = tree_map(self._kept, module.inputs)
        return visit

    def _output(self, module: Module) -> Any:
        if isinstance(module, Attached):
            return module.output
        named = self._named is not None
        values: tuple[Any, ...] = tuple(
            module._read(one) if named or not _is_pattern(one) else None for one in module._values()
        )
        if module._is_bare(module._entry("output")):
            return values[0]
        return BaseOutput(*values) if module._node.entry.record == "base" else values

    def _kept(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if self._detach and self.recorder.needs_grad:
            value = value.detach()
        if self._device is not None or self._dtype is not None:
            value = value.to(device=self._device, dtype=self._dtype if value.is_floating_point() else None)
        return value

    # --- afterwards ----------------------------------------------------------------------------------------------

    def visits(self, module: Module) -> list[Visit]:
        """The calls of a module, in order. Raises KeyError for one that was not asked for."""
        self._check_filled("a cache is filled when the block of its trace ends")
        key = key_of(module)
        if key not in self._visits:
            raise KeyError(f"{key} was not cached; {', '.join(self._visits) or 'nothing'} was")
        return [one for one in self._visits[key] if one.is_there]

    def _check_filled(self, otherwise: str) -> None:
        if self.recorder.open:
            raise TraceError(otherwise)
        if self.recorder.awaited:
            raise TraceError(f"the cache {self.recorder.awaited}")

    @property
    def keys(self) -> list[str]:
        """The paths of all modules that were cached."""
        return [*self._visits]

    def __getstate__(self) -> dict[str, Any]:
        """What is stored or copied: values, and of the model the names of its modules."""
        self._check_filled("a cache can be stored or copied when the block of its trace has ended")
        visits = {key: [one for one in found if one.is_there] for key, found in self._visits.items()}
        return {"model": Names(self.model), "recorder": Ended(), "_visits": visits}


@dataclass(frozen=True)
class Ended:
    """What is left of the recorder of a cache that was stored or copied."""

    open: bool = False
    awaited: str = ""


class Names(Envoy):
    """A model's modules by all their names, without the model."""

    def __init__(self, model: Any) -> None:
        attached = {path: _shell(module) for path, module in model._attached.items()}
        vars(self).update(_root=self, _path="", _node=model._node, _layer=None, _attached=attached)


def _shell(module: nn.Module) -> nn.Module:
    """A module's tree of names, without what the modules hold."""
    inside = {name: _shell(child) for name, child in module.named_children()}
    if isinstance(module, (nn.ModuleList, nn.Sequential)):
        return nn.ModuleList(inside.values())
    if isinstance(module, nn.ModuleDict):
        return nn.ModuleDict(inside)
    shell = nn.Module()
    for name, child in inside.items():
        shell.add_module(name, child)
    return shell


class CacheView:
    """What `tracer.cache()` gives: cached values, by path or by attribute, as soon as the trace has run.

    `cache["model.transformer.h.0"]` and `cache.model.transformer.h[0]` are a module's part, with `.output`, `.inputs`
    and `.input`. Where the module was called several times, at each step of a generation, these are lists, and
    `len(part)` says how often. It can be pickled, copied and given to `torch.save`: what is stored holds the values and
    the names of the modules, not the model.
    """

    def __init__(self, cache: Cache, module: Module | None = None) -> None:
        self._cache, self._module = cache, module

    def __reduce__(self) -> tuple:
        return _view, (self._cache, None if self._module is None else key_of(self._module))

    def save(self) -> "CacheView":
        """Accepted: a cache keeps what it holds anyway."""
        return self

    def _of_each(self, value: Callable[[Visit], Any], what: str) -> Any:
        if self._module is None:
            raise KeyError(f"the cache itself has no {what}: cache['model'], cache.transformer... have")
        found = [value(visit) for visit in self._cache.visits(self._module)]
        if any(one is Nothing for one in found):
            raise KeyError(f"no {what} in this cache: tracer.cache(include_{what}s=True)")
        return found[0] if len(found) == 1 else found

    @property
    def output(self) -> Any:
        """What the module gave."""
        out = self._of_each(lambda visit: visit.output, "output")
        if self._module is self._cache.model:
            for one in out if isinstance(out, list) else [out]:
                one.logits = one.view_as(one)  # as the model's output in a trace
        return out

    @property
    def inputs(self) -> Any:
        """What the module was given: positional arguments, and those by keyword."""
        return self._of_each(lambda visit: visit.inputs, "input")

    @property
    def input(self) -> Any:
        """The first of `inputs`."""
        return self._of_each(_first_input, "input")

    def keys(self) -> list[str]:
        """The paths of the modules that were cached, here and below."""
        if self._module is None:
            return self._cache.keys
        here = key_of(self._module)
        return [key for key in self._cache.keys if key == here or key.startswith(f"{here}.")]

    def values(self) -> list["CacheView"]:
        """The parts of the modules that were cached."""
        return [self._part(find(self._cache.model, key)) for key in self.keys()]

    def items(self) -> list[tuple[str, "CacheView"]]:
        """Paths and parts."""
        return [*zip(self.keys(), self.values(), strict=True)]

    def __getitem__(self, key: int | str) -> "CacheView":
        if isinstance(key, str) and self._module is None:
            return self._part(find(self._cache.model, key))
        return self._part((self._cache.model if self._module is None else self._module)[key])

    def __getattr__(self, name: str) -> "CacheView":
        if name.startswith("_"):
            raise AttributeError(name)
        root = self._cache.model
        if self._module is None and name == "model":
            return self._part(root)
        if self._module is root and root._find(name) is None and "model" in root._node.children:
            return self._part(getattr(root.model, name))  # cache.model.layers, as the module's own path goes
        return self._part(getattr(root if self._module is None else self._module, name))

    def _part(self, module: Any) -> "CacheView":
        if not isinstance(module, Module):
            raise AttributeError(f"{module!r:.60} is no module, so it is in no cache")
        return CacheView(self._cache, module)

    def __contains__(self, key: object) -> bool:
        try:
            module = find(self._cache.model, str(key))
        except KeyError:
            return False
        return key_of(module) in self._cache.keys

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys()) if self._module is None else len(self._cache.visits(self._module))

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        keys = self.keys()
        shown = ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
        return f"CacheView({len(keys)} modules: {shown})" if keys else "CacheView(nothing yet)"


def _view(cache: Cache, key: str | None) -> CacheView:
    return CacheView(cache, None if key is None else find(cache.model, key))


def _first_input(visit: Visit) -> Any:
    if visit.inputs is Nothing:
        return Nothing
    args, kwargs = visit.inputs
    return [*args, *kwargs.values()][0]


def _is_pattern(value: Any) -> bool:
    return not isinstance(value, tuple) and value.hook.endswith(PATTERN)


def key_of(module: Module) -> str:
    """The key of a module in a cache: Hugging Face's path below "model", by whatever name it was reached."""
    path = module._path if isinstance(module, Attached) else module._place
    return f"model.{path}" if path else "model"


def find(model: Any, key: str) -> Module:
    """The module of a key, with or without "model." before its path. Raises KeyError, with what is near, for none."""
    if key == "model":
        return model
    error: Exception | None = None
    for path in (key.removeprefix("model."), key):
        try:
            found = model.get(path)
        except (AttributeError, IndexError, TypeError) as one:
            error = error or one
            continue
        if isinstance(found, Module):
            return found
    raise KeyError(f"{key}: {error or 'it is no module'}")


@contextmanager
def speaking(tracer: "Tracer", invokes: list[Invoke], step: int) -> Iterator[None]:
    """Inside the `with`, the body speaks of some prompts at some step."""
    before = tracer._scope, tracer.step, tracer.ahead
    tracer._scope, tracer.step, tracer.ahead = invokes, step, {}
    try:
        yield
    finally:
        tracer._scope, tracer.step, tracer.ahead = before
