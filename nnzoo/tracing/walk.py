"""One pass of the model over the prompts of a batch, with a graph's nodes run at the places where they belong.

Stations stand at the hook points that the nodes need. When the pass arrives at one, each prompt's own part of the value
is handed to the graph, every node of that stage runs in program order, and the model goes on with what stands there
then. At the last stage the pass stops: what lies above is never computed. It can go on later: the block that it
stopped in runs again up to that place, with what the places below it went on with.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.hooks import HookPoint, Listener
from nnzoo.generation.recorded import recorded
from nnzoo.generation.recordings import Stretch
from nnzoo.generation.steps import BEGIN as BEGINNING
from nnzoo.tracing.batch import Batch
from nnzoo.tracing.graph import (
    AFTER,
    BEGIN,
    END,
    LOGITS,
    Chosen,
    Invoke,
    Node,
    Place,
    Put,
    Result,
    Stage,
)
from nnzoo.tracing.plan import Pass
from nnzoo.tracing.run import Run
from nnzoo.tracing.schedule import START
from nnzoo.tracing.shapes import UNEMBED, Shapes
from nnzoo.tracing.shortcuts import reads_only_last, unneeded_blocks


class Halt(Exception):
    """The pass has given all that was asked."""


@dataclass(eq=False)
class Arrival:
    """A place that a pass has come to, and what is to stand there when it goes on."""

    hook: str
    value: Tensor
    places: list[Place]  # of each prompt that looks at it
    pieces: dict[Place, Tensor]  # as edited in place
    views: list[Node]
    puts: dict[Place, tuple[Put, Tensor]] = field(default_factory=dict)

    def changed(self, run: Run) -> dict[Place, Tensor]:
        """The prompts' values that are not what the model gave."""
        changed = dict(self.pieces)
        for node in self.views:  # the model goes on with what gradients are asked of
            if node.storage.place in self.places:
                changed[node.storage.place] = node.view.undone(run.values[node])
        return changed | {place: value for place, (_, value) in self.puts.items()}

    def take_puts(self, run: Run) -> None:
        """Keep what has been put here, however long the pass waits."""
        for place in self.places:
            put = run.puts.get(place)
            if put in run.done and (place not in self.puts or self.puts[place][0] is not put):
                self.puts[place] = (put, run.take(put))


class Walk:
    """A pass that goes as far as it is asked to: through blocks, and through the steps of a generation."""

    def __init__(self, model: HookedModel, invokes: list[Invoke], shapes: Shapes) -> None:
        self.model, self.order, self.shapes = model, shapes.order, shapes
        self.batch = Batch(invokes)
        self.step = 0
        self._tokens, self._mask = self.batch.tokens, self.batch.attention_mask
        self._layer: int | None = None  # the block to come; None: the step has not begun
        self._x: Any = None  # what goes into it
        self._stopped: Arrival | None = None  # where it waits
        self._kept: dict[str, Tensor] = {}  # what it went on with at the places of the block before that
        self._only_last = False  # position, of the logits
        self._span: Any = None
        self.decoders = {i: i.decoder.copy() for i in invokes if i.decoder is not None}
        self._cache = model.new_cache() if self.decoders else None
        longest = max((decoder.options.max_new_tokens for decoder in self.decoders.values()), default=0)
        self._recorded = None if self._cache is None else recorded(model, self._cache, longest)
        self._hooks_at: dict[int, list[str]] = {}  # of each step, where somebody listens
        self._blocks = list(model.blocks)
        self._busy = False

    @property
    def boundaries(self) -> list[Stage]:
        """What it can go on after, the latest first: all that it has come to, or what lies below the block it is in."""
        start = Stage(self.step, BEGIN if self._layer is None else self._start_of(self._layer) - 1)
        return [start] if self._stopped is None or self._only_last else [self._here(self._stopped.hook), start]

    def stands_at(self, stage: Stage) -> bool:
        """Whether it has come to a stage and not left it."""
        return self._stopped is not None and stage == self._here(self._stopped.hook)

    def _here(self, hook: str) -> Stage:
        return Stage(self.step, self.order[hook])

    def _start_of(self, layer: int) -> int:
        done = layer == len(self._blocks)
        return self.order["ln_final.hook_in" if done else f"blocks.{layer}.hook_resid_pre"]

    def go_back_to(self, boundary: Stage) -> None:
        """Go on after one of `boundaries`."""
        if not self.stands_at(boundary):
            self._leave()

    def wait(self, run: Run) -> None:
        """Keep what will be wanted when it goes on."""
        if self._stopped is not None:
            self._stopped.take_puts(run)

    def _leave(self) -> None:
        self._stopped, self._kept = None, {}

    def go(self, run: Run, one: Pass) -> None:
        """Run the nodes of all stages, and no more of the model than they need."""
        self._run, self._stages, self._hooks_at, self._last = run, one.stages, {}, START
        hooks = self.shapes.hooks
        for stage in one.stages:
            if stage > self._last and stage != AFTER:
                self._last = stage
            if 0 <= stage.order < len(hooks) and stage < END:
                self._hooks_at.setdefault(stage.step, []).append(hooks[stage.order])
        if self._stopped is not None:
            self._stopped.take_puts(run)
            ends = self._layer is not None and self._stopped.hook == f"blocks.{self._layer}.hook_resid_post"
            if self._layer is not None and ends and self._last > START:
                self._x, self._layer = self._go_on(self._stopped), self._layer + 1
                self._leave()
        if self._cache is not None and self._layer is not None:
            self._cache.rewind(self._layer, self.batch.n_pos + self.step - 1 if self.step else 0)
        self._through_steps()
        run.run_all(one.stages.get(AFTER, ()))

    def _through_steps(self) -> None:
        while self._last.step >= self.step and not self._ended:
            station = Station(self.arrive)
            handles = [self.model.hook_points[hook].attach(station) for hook in self._listened()]
            try:
                logits = self._through_blocks()
            except Halt:
                return
            finally:
                for handle in handles:
                    handle.remove()
            if self._cache is None:
                return
            self._choose(logits[:, -1])
            if Stage(self.step - 1, self._choice) >= self._last:
                return
        if self._last == END:
            for invoke, decoder in self.decoders.items():
                self._give(Result, invoke, END, decoder.ids)
            self._run.run_all(self._stages[END])

    def _through_blocks(self) -> Tensor:
        if self._layer is None:
            if self._recorded is not None and (stretches := self._recorded.stretches(self._tokens)):
                return self._through_stretches(stretches)
            self._x, self._span = self.model.begin(self._tokens, self._mask, self._cache)
            self._layer = 0
            self._leave()
        unneeded = unneeded_blocks(self, self._stages) if self._run.puts and self._cache is None else ()
        for block in self._blocks[self._layer :]:
            if self._layer not in unneeded:
                self._x = block(self._x, self._span)
            else:
                self._x = self._past(self._layer, self._x)
            self._layer += 1
            if self._stopped is not None or self._kept:
                self._leave()
        if self._stopped is not None and self._stopped.hook == LOGITS:
            return self._go_on(self._stopped)
        return self._finish(self._x)

    def _through_stretches(self, stretches: Mapping[int, Stretch]) -> Tensor:
        """A step of which some parts are replayed; where it stops in another, the rest goes the usual way."""
        first, n_blocks = stretches[BEGINNING], len(self._blocks)
        if first.stop <= n_blocks:
            self._span = self.model.span(self._tokens, None, self._cache)
        self._x, self._layer = first(self._tokens), first.stop
        while self._layer < n_blocks or self._layer in stretches:
            stretch = stretches.get(self._layer)
            if stretch is not None:
                self._x, self._layer = stretch(self._x), stretch.stop
                continue
            self._x = self._blocks[self._layer](self._x, self._span)
            self._layer += 1
            if self._kept:
                self._leave()
        return self._x if self._layer > n_blocks else self._finish(self._x)

    def _past(self, layer: int, x: Tensor) -> Tensor:
        """What leaves a block that need not run."""
        for hook in (f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.hook_resid_post"):
            if Stage(self.step, self.order[hook]) in self._stages:
                x = self.arrive(hook, x)
        return x

    def _finish(self, x: Tensor) -> Tensor:
        """The logits; of the last position only, where nobody looks at the others."""
        model, listened = self.model, self._listened()
        if self._cache is None:
            only_last = reads_only_last(self._run, self._stages, self.batch.invokes, self.order)
        else:
            only_last = all(i.last_only for i in self.batch.invokes) or not UNEMBED.intersection(listened)
        self._only_last = only_last
        if only_last and not any(hook.startswith("ln_final") for hook in listened):
            x = x[:, -1:]
        x = model.ln_final(x)
        return model.unembed(x[:, -1:] if only_last else x)

    @property
    def _ended(self) -> bool:
        return bool(self.decoders) and all(decoder.done for decoder in self.decoders.values())

    def _choose(self, logits: Tensor) -> None:
        """Let every prompt choose its next token: the step is over."""
        chosen = []
        for rows, invoke in self.batch.rows:
            decoder = self.decoders.get(invoke)
            if decoder is None:
                chosen.append(invoke.tokens[:, -1])  # this one has no more steps, and goes along
                continue
            chosen.append(decoder.choose(logits[rows].detach()))
            self._give(Chosen, invoke, Stage(self.step, self._choice), not decoder.done)
            if decoder.done:
                self._run.made.setdefault(invoke, self.step + 1)
        self._tokens, self._mask = torch.cat(chosen)[:, None], None
        self._layer = self._x = self._span = None
        self._only_last = False
        self._leave()
        here, self.step = Stage(self.step, self._choice), self.step + 1
        self._run.run_all(self._stages.get(here, []))

    @property
    def _choice(self) -> int:
        return len(self.order)

    def _give(self, kind: type, invoke: Invoke, stage: Stage, value: Any) -> None:
        for node in self._stages.get(stage, []):
            if isinstance(node, kind) and node.invoke is invoke:  # type: ignore[attr-defined]  # a kind of Given
                self._run.give(node, value)

    def _listened(self) -> list[str]:
        """Hook points where this step stops by, or has stopped by."""
        again = [*self._kept, self._stopped.hook] if self._stopped is not None else []
        return self._hooks_at.get(self.step, []) + again

    # --- hook points ---------------------------------------------------------------------------------------------

    def arrive(self, hook: str, value: Tensor) -> Tensor:
        """The pass is at a hook point with a value; what it goes on with."""
        if self._busy:
            return value  # a module called inside the body passes its hook points too
        if self._stopped is not None and hook == self._stopped.hook:
            return self._go_on(self._stopped)
        if hook in self._kept:
            return self._kept[hook]
        stage = self._here(hook)
        nodes = self._stages[stage]
        here = self._arrival(hook, value, nodes)
        self._busy = True
        try:
            self._run.run_all(nodes)
        finally:
            self._busy = False
        if self._run.puts:
            here.take_puts(self._run)
        if stage == self._last:
            self._stopped = here
            raise Halt
        return self._go_on(here)

    def _go_on(self, here: Arrival) -> Tensor:
        """The pass leaves a place."""
        if here is self._stopped:
            self._stopped = None
        out = self._put_back(here.value, here.changed(self._run))
        if self._last.step == self.step and self._last.order < self._next_start():
            self._kept[here.hook] = out  # it will stop in this block
        return out

    def _next_start(self) -> int:
        if self._layer is None:
            return self._start_of(0)
        return len(self.order) if self._layer == len(self._blocks) else self._start_of(self._layer + 1)

    def _arrival(self, hook: str, value: Tensor, nodes: list[Node]) -> Arrival:
        """Give each prompt its own part of a value."""
        run = self._run
        places: list[Place] = []
        pieces: dict[Place, Tensor] = {}
        views = [n for n in nodes if n.view is not None and n in run.differentiated] if run.differentiated else []
        viewed = {node.storage.place for node in views} if views else ()
        for rows, invoke in self.batch.rows:
            place = invoke.places.get((hook, self.step))
            if place is None or not run.is_reached(place.arrived):
                continue
            places.append(place)
            piece = self.batch.own(value, self.shapes.axes(hook), rows, place.arrived.meta.shape)
            if place not in run.edited:
                piece = piece.contiguous()  # as it is when the prompt runs alone
            followed = place.arrived in run.differentiated or place in viewed
            if followed:  # an alias, whose gradient is that of this place alone
                piece = piece.view_as(piece) if piece.requires_grad else piece.detach().requires_grad_()
            if place in run.edited:
                piece = piece.clone(memory_format=torch.contiguous_format)  # nobody else's memory is edited
            if place in run.edited or followed:
                pieces[place] = piece
            run.give(place.arrived, piece)
        return Arrival(hook, value, places, pieces, views)

    def _put_back(self, value: Tensor, changed: dict[Place, Tensor]) -> Tensor:
        if not changed:
            return value
        if len(self.batch.rows) == 1:
            (piece,) = changed.values()
            if piece.shape == value.shape:
                return piece
        out = value.clone(memory_format=torch.contiguous_format)
        for rows, invoke in self.batch.rows:
            for place, piece in changed.items():
                if place.invoke is invoke:
                    self.batch.own(out, self.shapes.axes(place.hook), rows, piece.shape).copy_(piece)
        return out


class Station(Listener):
    """Hands the value of a place to a walk."""

    def __init__(self, arrive: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__(fn=arrive)
        self.thread = get_ident()

    def fire(self, value: Tensor, point: HookPoint) -> Tensor:
        # a pass of another thread, which came by the native model and not by the lock, is none of ours
        return self.fn(point.name, value) if get_ident() == self.thread else value
