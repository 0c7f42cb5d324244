"""Edits of a model being done in one invoke of a trace, before all that the body does.

Where an edit calls a module of the user's own with `hook=True`, the body may still change what the module gave. So what
comes in the edit is done when the body speaks of the same places, when the model runs that far, or when the body ends.
"""

from collections import ChainMap
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nnzoo.envoys.attached import note
from nnzoo.tracing.edits import Edit
from nnzoo.tracing.graph import Invoke, Node, Stage, Storage
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.modes import restored
from nnzoo.tracing.recorder import Recorder, Refusal
from nnzoo.tracing.tape import Do, Entry, Player, Read, Watch

if TYPE_CHECKING:
    from nnzoo.tracing.tracer import Tracer

What = str | nn.Module  # a hook point, or a module of the user's own that an edit calls

_OVER = Refusal(
    "an edit has gone on with this value already, so a change would not be seen; change it before the body comes to "
    "the places that the edit sets"
)


@dataclass(frozen=True, eq=False)
class Coming:
    """An entry of an edit that is to be done, and where the values that it uses are found; `shift` is in steps."""

    entry: Entry
    known: MutableMapping[Any, Any]
    shift: int
    values: tuple[Any, ...]  # what it uses and what it makes: nodes of the tape, with the shift for which they are

    @property
    def what(self) -> tuple[What, int] | None:
        """The hook point or the module that it has to do with, and the step."""
        entry = self.entry
        if isinstance(entry, Do):
            return None
        return (entry.module if isinstance(entry, Watch) else entry.hook), entry.step + self.shift

    @property
    def output(self) -> tuple[Node, ...]:
        """What the module that is watched gave, as on the tape."""
        if not isinstance(self.entry, Watch):
            return ()
        return tuple(one for one in tree_leaves(self.entry.seen[2]) if isinstance(one, Node))


class Island:
    """Entries of edits that have to do with one another, and with no others; they are done in order."""

    def __init__(self, coming: Sequence[Coming]) -> None:
        self.coming, self.done = coming, 0

    @cached_property
    def ends(self) -> dict[tuple[What, int], int]:
        """After how many entries nothing more has to do with a hook point at a step, or with a module's call there.

        A value that was read at a hook point has to do with it for as long as it, or what was made of it, is used.
        """
        ends: dict[tuple[What, int], int] = {}
        last: dict[Any, int] = {}
        for n in range(len(self.coming), 0, -1):
            one = self.coming[n - 1]
            n_uses = len(one.entry.uses)
            end = max([n, *(last.pop(result, 0) for result in one.values[n_uses:])])
            for used in one.values[:n_uses]:
                last[used] = max(last.get(used, 0), end)
            if one.what is not None:
                ends[one.what] = max(ends.get(one.what, 0), end if isinstance(one.entry, Read) else n)
        return ends

    def open(self) -> None:
        """The edit may write where the body may not."""
        for storage in self._used():
            storage.written = None if storage.written is _OVER else storage.written

    def close(self) -> None:
        """The body may not write into what a module gave, once an edit has used it."""
        for storage in self._used():
            if storage.place is None and storage.written is None:
                storage.written = _OVER

    def _used(self) -> list[Storage]:
        given: set[Node] = set()
        used = []
        for one in self.coming[: self.done]:
            given.update(one.output)
            if not isinstance(one.entry, Watch):
                used += [one.known[node].storage for node in one.entry.uses if node in given]
        return used


def islands_of(coming: Sequence[Coming]) -> list[Island]:
    """What is to come in parts that share no value, no hook point at a step and no module's call."""
    joined: dict[Any, Any] = {}

    def root(key: Any) -> Any:
        while joined.setdefault(key, key) != key:
            joined[key] = key = joined[joined[key]]
        return key

    for n, one in enumerate(coming):
        for key in (*one.values, *filter(None, [one.what])):
            joined[root(key)] = root(n)
    parts: dict[Any, list[Coming]] = {}
    for n, one in enumerate(coming):
        parts.setdefault(root(n), []).append(one)
    return [Island(part) for part in parts.values()]


class Playback:
    """The edits of a model in one invoke: for the steps that there are, and later for those that are yet to come."""

    def __init__(self, edits: Sequence[Edit], tracer: "Tracer", invoke: Invoke) -> None:
        self._edits, self._tracer, self._invoke = edits, tracer, invoke
        self._known: list[dict[Any, Any]] = [{} for _ in edits]  # of what an edit does outside of loops
        self._known_at: dict[tuple[int, int, int], dict[Any, Any]] = {}  # of its loops: edit, part, shift
        self._planned: set[tuple[int, int, int, int]] = set()  # edit, part, shift, entry
        self._islands: list[Island] = []
        self._island_of: dict[tuple[What, int], Island] = {}
        self._watched: dict[tuple[nn.Module, int], Coming] = {}
        for edit in edits:
            if edit.custom is not None:
                tracer.recorder.custom = edit.custom
        self.go_on()

    def go_on(self) -> None:
        """Plan what was not planned yet, and can be done now; what was, is done before."""
        self.finish()
        decoder = self._invoke.decoder
        self._most = 1 if decoder is None else decoder.options.max_new_tokens
        coming = [*self._reachable()]
        waits = any(isinstance(one.entry, Watch) for one in coming)
        self._islands = islands_of(coming) if waits else [Island(coming)]
        self._island_of = {what: island for island in self._islands for what in island.ends} if waits else {}
        if not waits:
            self.finish()

    def reach(self, what: What, step: int) -> None:
        """Do all that has to do with a hook point, or with a module that an edit calls: the body speaks of it."""
        island = self._island_of.get((what, step))
        if island is not None:
            self._do(island, island.ends[what, step])

    def reach_stage(self, stage: Stage) -> None:
        """Do all that changes what a pass gives up to a stage."""
        order = self._tracer.model.order
        for (what, step), island in self._island_of.items():
            if isinstance(what, str) and Stage(step, order[what]) < stage:
                self._do(island, island.ends[what, step])

    def finish(self) -> None:
        """Do all that is planned."""
        for island in self._islands:
            self._do(island, len(island.coming))

    def replace(self, module: nn.Module, step: int, value: Tensor) -> None:
        """The edit goes on with another value than a module gave. Raises TraceError where it has gone on already."""
        one = self._watched[module, step]
        args, kwargs, output = one.entry.seen  # type: ignore[union-attr]  # it is a Watch
        if not isinstance(output, Node):
            raise TypeError("the module gives several values: edit one in place, .output[0][:] = value")
        old = one.known[output]
        _OVER.check(old)
        if (value.shape, value.dtype) != (old.meta.shape, old.meta.dtype):
            raise ValueError(
                f"the module gave {list(old.meta.shape)}, {old.meta.dtype}; {list(value.shape)}, {value.dtype} cannot "
                "take its place"
            )
        one.known[output] = self._own(value)._node
        player = self._player(one)
        seen = [player.value(node) if isinstance(node, Node) else node for node in (args, kwargs)]
        note(self._tracer, module, (*seen, player.value(output)), (self._invoke,), step, by_edit=True)

    def _own(self, value: Tensor) -> LazyTensor:
        if not isinstance(value, LazyTensor):
            return self._tracer.recorder.constant(value)
        self._tracer.recorder.check_ours(value)
        return value

    # --- what comes ----------------------------------------------------------------------------------------------

    def _reachable(self) -> Iterator[Coming]:
        for e, edit in enumerate(self._edits):
            for p, part in enumerate(edit.parts):
                for shift in part.shifts(self._most):
                    yield from self._of_part(e, p, shift)

    def _of_part(self, e: int, p: int, shift: int) -> Iterator[Coming]:
        edit, part = self._edits[e], self._edits[e].parts[p]
        own = self._known[e] if part.steps is None else self._known_at.setdefault((e, p, shift), {})
        known = ChainMap(own, self._known[e])
        outside = {
            result for one in edit.parts if one.steps is None for it in one.tape.entries for result in it.results
        }
        out_of_reach: set[object] = set()
        for n, entry in enumerate(part.tape.entries):
            if (e, p, shift, n) in self._planned:
                continue
            if self._is_late(entry, shift) or not out_of_reach.isdisjoint(entry.uses):
                out_of_reach.update(entry.results)
                continue
            self._planned.add((e, p, shift, n))
            values = (*entry.uses, *entry.results)
            yield Coming(entry, known, shift, tuple((one, 0 if one in outside else shift) for one in values))

    def _is_late(self, entry: Entry, shift: int) -> bool:
        return not isinstance(entry, Do) and entry.step + shift >= self._most

    def _do(self, island: "Island", upto: int) -> None:
        recorder = self._tracer.recorder
        if upto <= island.done:
            return
        island.open()
        with recorder.off_tape(), restored(recorder.modes):
            while island.done < upto:
                one = island.coming[island.done]
                island.done += 1
                self._player(one).play(one.entry)
                if isinstance(one.entry, Watch):
                    self._watched[one.entry.module, one.entry.step + one.shift] = one
        island.close()

    def _player(self, one: Coming) -> Player:
        tracer, here, shift = self._tracer, [self._invoke], one.shift
        return Player(
            tracer.recorder,
            read=lambda hook, step: tracer._places.read(here, hook, step + shift),
            put=lambda hook, step, value: tracer._places.put(here, hook, step + shift, value),
            watch=lambda module, values, step: note(tracer, module, values, tuple(here), step + shift, by_edit=True),
            where="in an edit of the model",
            new=one.known,
        )


class Playbacks:
    """The edits of a model in all invokes of a trace."""

    def __init__(self) -> None:
        self._of: dict[Invoke, Playback] = {}

    def begin(self, tracer: "Tracer", invoke: Invoke) -> None:
        """Another invoke has what the edits of the model do."""
        if not tracer.model.edits:
            return
        self._of[invoke] = Playback(tracer.model.edits, tracer, invoke)
        if len(self._of) == 1:
            tracer.recorder._run = partial(self._look, tracer.recorder._run)

    def go_on(self, invoke: Invoke) -> None:
        """An invoke has more steps than before."""
        if invoke in self._of:
            self._of[invoke].go_on()

    def reach(self, scope: Sequence[Invoke], what: What, step: int) -> None:
        """The body speaks of a hook point, or of a module that edits call; they come before it."""
        for invoke in scope if self._of else ():
            self._of[invoke].reach(what, step)

    def replace(self, scope: Sequence[Invoke], module: nn.Module, step: int, value: Tensor) -> None:
        """The edit that called a module goes on with another value than it gave."""
        (invoke,) = scope
        self._of[invoke].replace(module, step, value)

    def finish(self) -> None:
        """The body is over."""
        for playback in self._of.values():
            playback.finish()

    def _look(self, look: Callable, recorder: Recorder, nodes: list[Node]) -> dict[Node, Any]:
        for node in nodes:
            for invoke, stage in node.needs.items():
                if invoke in self._of:  # it may be one of another trace of a session
                    self._of[invoke].reach_stage(stage)
        return look(recorder, nodes)
