"""HookedRootModule: hooks and caches for any module with HookPoints in it, a toy model of yours or HookedTransformer.

What it records is what nnzoo's own recorder records: values as they pass, without copies.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nnzoo.architectures.activation_cache import Recorder
from nnzoo.architectures.hooks import Handle, pairs_of
from nnzoo.architectures.slices import at_positions
from nnzoo.transformer_lens.hook_points import HookFunction, HookPoint, LensHandle, LensPoint
from nnzoo.transformer_lens.slices import SliceInput, positions_of

NamesFilter = Callable[[str], bool] | Sequence[str] | str | None
Hooks = Iterable[tuple[Any, HookFunction]]


class HookedRootModule(nn.Module):
    """A module that knows its HookPoints by name. Call `setup()` at the end of `__init__`.

    >>> class Toy(HookedRootModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.hook_square = HookPoint()
    ...         self.setup()
    ...     def forward(self, x):
    ...         return self.hook_square(x * x) + 3
    >>> out, cache = Toy().run_with_cache(torch.tensor(2.0))
    >>> out, cache["hook_square"]
    (tensor(7.), tensor(4.))
    """

    mod_dict: dict[str, Any]
    hook_dict: dict[str, LensPoint]

    def __init__(self, *args: Any) -> None:
        super().__init__()
        self.is_caching = False
        self.context_level = 0

    def setup(self) -> None:
        """Name the modules and hook points, and list them in `mod_dict` and `hook_dict`."""
        self.mod_dict, self.hook_dict = {}, {}
        for name, module in self.named_modules():
            if name:
                module.name = name
                self.mod_dict[name] = module
            if isinstance(module, HookPoint):
                module.give_name(name)
                self.hook_dict[name] = module

    def hook_points(self) -> Iterable[LensPoint]:
        """All hook points."""
        return self.hook_dict.values()

    def list_hooks(
        self, name_filter: NamesFilter = None, dir: str = "both", including_permanent: bool = True
    ) -> dict[str, list[LensHandle]]:
        """The hooks that are there, by the name of their hook point."""
        points = self.hook_points() if name_filter is None else self.points_named(name_filter)
        found = {p.name: [h for h in p.handles(dir) if including_permanent or not h.is_permanent] for p in points}
        return {name: handles for name, handles in found.items() if handles}

    # --- which hook points ---------------------------------------------------------------------------------------

    def points_named(self, names: NamesFilter) -> list[LensPoint]:
        """The hook points of a name, of several, or those that a function of the name accepts; None: those of a cache.

        Raises KeyError where nothing is meant.
        """
        if names is None:
            return self.cached_points()
        if callable(names):
            found = [point for point in self.cached_points() if names(point.name)]
            if not found:
                raise KeyError(f"the filter {names!r} accepts none of the {len(self.hook_dict)} hook points")
            return found
        if isinstance(names, str):
            return self.points_of_one_name(names)
        named = {point.name: point for name in names for point in self.points_of_one_name(name)}
        if not named:
            raise KeyError("the filter names no hook point: it is empty")
        return list(named.values())

    def points_of_one_name(self, name: str) -> list[LensPoint]:
        """The hook point of a name. Raises KeyError, with the nearest names, where there is none."""
        if name not in self.hook_dict:
            near = difflib.get_close_matches(name, self.hook_dict, n=3)
            raise KeyError(f"no hook point is called {name!r}; {f'did you mean {near}?' if near else 'see hook_dict'}")
        return [self.hook_dict[name]]

    def cached_points(self) -> list[LensPoint]:
        """The hook points that a cache holds, and a function of names is asked about."""
        return list(self.hook_dict.values())

    # --- hooks ---------------------------------------------------------------------------------------------------

    def check_hooks_to_add(self, *args: Any, **kwargs: Any) -> None:
        """Called before `add_hook` adds one, with the hook point, its name and the hook; raise here to refuse it."""

    def check_and_add_hook(
        self,
        hook_point: LensPoint,
        hook_point_name: str,
        hook: HookFunction,
        dir: str = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Add a hook to one hook point, after `check_hooks_to_add`."""
        self.check_hooks_to_add(hook_point, hook_point_name, hook, dir=dir, is_permanent=is_permanent, prepend=prepend)
        hook_point.add_hook(hook, dir, is_permanent, level, prepend)

    def add_hook(
        self,
        name: NamesFilter,
        hook: HookFunction,
        dir: str = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Listen at hook points until `reset_hooks`; hook(value, hook=point) may give a replacement.

        Raises KeyError where `name` means no hook point.
        """
        for point in self.points_named(name):
            self.check_and_add_hook(point, point.name, hook, dir, is_permanent, level, prepend)

    def add_perma_hook(self, name: NamesFilter, hook: HookFunction, dir: str = "fwd") -> None:
        """Listen until `reset_hooks(including_permanent=True)`."""
        self.add_hook(name, hook, dir, is_permanent=True)

    def remove_all_hook_fns(
        self, direction: str = "both", including_permanent: bool = False, level: int | None = None
    ) -> None:
        """Remove the hooks of a direction, permanent ones only if asked."""
        for point in self.every_point():
            point.remove_hooks(direction, including_permanent, level)

    def every_point(self) -> Iterable[LensPoint]:
        """Whatever can be listened to."""
        return self.hook_points()

    def clear_contexts(self) -> None:
        """Empty every hook point's `ctx`."""
        for point in self.every_point():
            point.clear_context()

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: str = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Remove hooks, permanent ones only if asked, and empty the contexts."""
        if clear_contexts:
            self.clear_contexts()
        self.remove_all_hook_fns(direction, including_permanent, level)
        self.is_caching = False

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[Any]:
        """Listen inside the `with`, and after it only with `reset_hooks_end=False`."""
        handles: list[Handle] = []
        self.context_level += 1
        try:
            for hooks, dir in ((fwd_hooks, "fwd"), (bwd_hooks, "bwd")):
                for name, fn in pairs_of(hooks, f"{dir}_hooks"):
                    points = self.points_named(name)
                    handles += [point.add_hook(fn, dir, level=self.context_level) for point in points]
            yield self
        finally:
            self.context_level -= 1
            if reset_hooks_end:
                for handle in handles:
                    handle.remove()
                if clear_contexts:
                    self.clear_contexts()

    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """Run once with `[(name, hook), ...]` listening.

        Backward hooks stay on this run's values, for the backward pass that follows.
        """
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self(*model_args, **model_kwargs)

    # --- caches --------------------------------------------------------------------------------------------------

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: SliceInput = None,
        **model_kwargs: Any,
    ) -> tuple[Any, Any]:
        """Run, and keep what passes the hook points, detached, in a dict by name.

        With `incl_bwd` the output, a scalar, is differentiated, and gradients stand at the names with "_grad" behind.
        `pos_slice` keeps some positions; their axis stays.
        """
        recorder = Recorder(device, positions_of(pos_slice))
        try:
            for point in self.points_named(names_filter):
                recorder.listen(point, gradients=incl_bwd)
            out = self(*model_args, **model_kwargs)
            if incl_bwd:
                out.backward()
        finally:
            if reset_hooks_end:
                recorder.stop()
            if clear_contexts:
                self.clear_contexts()
        return out, self.cache_of(recorder.values(), names_filter, remove_batch_dim)

    def cache_of(self, values: dict[str, Tensor], names_filter: NamesFilter, remove_batch_dim: bool) -> Any:
        """What `run_with_cache` gives back beside the output."""
        return {name: value[0] for name, value in values.items()} if remove_batch_dim else values

    def get_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: SliceInput = None,
    ) -> tuple[dict[str, Tensor], list, list]:
        """A dict, and the hooks that fill it once they are added: forward ones, and backward ones if asked."""
        cache, positions = {} if cache is None else cache, positions_of(pos_slice)
        self.is_caching = True

        def keep(value: Tensor, hook: LensPoint, ending: str = "") -> None:
            kept = at_positions(value.detach().to(device), hook.axes, positions)
            cache[hook.name + ending] = kept[0] if remove_batch_dim else kept

        def keep_gradient(value: Tensor, hook: LensPoint) -> None:
            keep(value, hook, "_grad")

        names = [point.name for point in self.points_named(names_filter)]
        return cache, [(n, keep) for n in names], [(n, keep_gradient) for n in names if incl_bwd]

    def add_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Hooks that stay, and fill the dict that comes back at every run."""
        cache, fwd, bwd = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        for dir, hooks in (("fwd", fwd), ("bwd", bwd)):
            for name, fn in hooks:
                self.add_hook(name, fn, dir)
        return cache

    def cache_all(self, cache: dict[str, Tensor] | None, incl_bwd: bool = False, **options: Any) -> None:
        """`add_caching_hooks` at every hook point."""
        self.add_caching_hooks(None, incl_bwd, cache=cache, **options)

    def cache_some(
        self, cache: dict[str, Tensor] | None, names: Callable[[str], bool], incl_bwd: bool = False, **options: Any
    ) -> None:
        """`add_caching_hooks` at the hook points that a function accepts."""
        self.add_caching_hooks(names, incl_bwd, cache=cache, **options)
