"""Edits of a model being done in one invoke of a trace, before all that the body does.

Where an edit calls a module of the user's own with `hook=True`, the body may still change what the module gave. So what
comes in the edit is done when the body speaks of the same places, when the model runs that far, or when the body ends.
"""

from collections import ChainMap
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
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

    @property
    def output(self) -> tuple[Node, ...]:
        """What the module that is watched gave, as on the tape."""
        if not isinstance(self.entry, Watch):
            return ()
        return tuple(one for one in tree_leaves(self.entry.seen[2]) if isinstance(one, Node))


class Playback:
    """The edits of a model in one invoke: for the steps that there are, and later for those that are yet to come."""

    def __init__(self, edits: Sequence[Edit], tracer: "Tracer", invoke: Invoke) -> None:
        self._edits, self._tracer, self._invoke = edits, tracer, invoke
        self._known: list[dict[Any, Any]] = [{} for _ in edits]  # of what an edit does outside of loops
        self._known_at: dict[tuple[int, int, int], dict[Any, Any]] = {}  # of its loops: edit, part, shift
        self._planned: set[tuple[int, int, int, int]] = set()  # edit, part, shift, entry
        self._coming: list[Coming] = []
        self._done = 0  # how many of them
        self._until: dict[tuple[What, int], int] = {}  # the number of entries after which an edit is done with it
        self._watched: dict[tuple[nn.Module, int], Coming] = {}
        self._used: list[Storage] = []  # of watched values with which an edit has gone on
        for edit in edits:
            if edit.custom is not None:
                tracer.recorder.custom = edit.custom
        self.go_on()

    def go_on(self) -> None:
        """Plan what was not planned yet, and can be done now; what was, is done before."""
        self.finish()
        decoder = self._invoke.decoder
        self._most = 1 if decoder is None else decoder.options.max_new_tokens
        self._coming, self._done = [*self._reachable()], 0
        self._until = _ends(self._coming)
        if not any(isinstance(one.entry, Watch) for one in self._coming):
            self.finish()

    def reach(self, what: What, step: int) -> None:
        """Do all that has to do with a hook point, or with a module that an edit calls: the body speaks of it."""
        self._do(self._until.get((what, step), 0))

    def reach_stage(self, stage: Stage) -> None:
        """Do all that changes what a pass gives up to a stage."""
        order, ends = self._tracer.model.order, self._until.items()
        below = [n for (what, step), n in ends if isinstance(what, str) and Stage(step, order[what]) < stage]
        self._do(max(below, default=0))

    def finish(self) -> None:
        """Do all that is planned."""
        self._do(len(self._coming))

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
        part = self._edits[e].parts[p]
        own = self._known[e] if part.steps is None else self._known_at.setdefault((e, p, shift), {})
        known = ChainMap(own, self._known[e])
        out_of_reach: set[object] = set()
        for n, entry in enumerate(part.tape.entries):
            if (e, p, shift, n) in self._planned:
                continue
            if self._is_late(entry, shift) or not out_of_reach.isdisjoint(entry.uses):
                out_of_reach.update(entry.results)
                continue
            self._planned.add((e, p, shift, n))
            yield Coming(entry, known, shift)

    def _is_late(self, entry: Entry, shift: int) -> bool:
        return not isinstance(entry, Do) and entry.step + shift >= self._most

    def _do(self, upto: int) -> None:
        recorder = self._tracer.recorder
        if upto <= self._done:
            return
        for storage in self._used:
            storage.written = None if storage.written is _OVER else storage.written
        with recorder.off_tape(), restored(recorder.modes):
            while self._done < upto:
                one = self._coming[self._done]
                self._done += 1
                self._player(one).play(one.entry)
                self._note(one)
        for storage in self._used:
            if storage.place is None and storage.written is None:
                storage.written = _OVER

    def _note(self, one: Coming) -> None:
        if isinstance(one.entry, Watch):
            self._watched[one.entry.module, one.entry.step + one.shift] = one
            return
        given = {node for watched in self._watched.values() for node in watched.output}
        self._used += [one.known[node].storage for node in one.entry.uses if node in given]

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
                self._of[invoke].reach_stage(stage)
        return look(recorder, nodes)


def _ends(coming: Sequence[Coming]) -> dict[tuple[What, int], int]:
    """After how many entries nothing more has to do with a hook point at a step, or with a module's call there.

    A value that was read at a hook point has to do with it for as long as it, or what was made of it, is used.
    """
    ends: dict[tuple[What, int], int] = {}
    last: dict[Any, int] = {}
    for n in range(len(coming), 0, -1):
        entry, shift = coming[n - 1].entry, coming[n - 1].shift
        end = max([n, *(last.pop(result, 0) for result in entry.results)])
        for used in entry.uses:
            last[used] = max(last.get(used, 0), end)
        if isinstance(entry, Do):
            continue
        what = entry.module if isinstance(entry, Watch) else entry.hook
        end = end if isinstance(entry, Read) else n
        ends[what, entry.step + shift] = max(ends.get((what, entry.step + shift), 0), end)
    return ends
