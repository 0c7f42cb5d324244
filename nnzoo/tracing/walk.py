"""One pass of the model over the prompts of a batch, with a graph's nodes run at the places where they belong.

Stations stand at the hook points that the nodes need. When the pass arrives at one, each prompt's own part of the value
is handed to the graph, every node of that stage runs in program order, and the model goes on with what stands there
then. After the last stage the pass stops: what lies above is never computed. It can go on later from the block it
stopped in.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.hooks import HookPoint, Listener
from nnzoo.tracing.batch import Batch
from nnzoo.tracing.graph import AFTER, BEGIN, END, Call, Chosen, Invoke, Node, Place, Put, Result, Stage
from nnzoo.tracing.run import Run
from nnzoo.tracing.shapes import UNEMBED, Shapes
from nnzoo.tracing.shortcuts import reads_only_last, unneeded_blocks


class Halt(Exception):
    """The pass has given all that was asked."""


class Walk:
    """A pass that goes as far as it is asked to: through blocks, and through the steps of a generation."""

    def __init__(self, model: HookedModel, invokes: list[Invoke], order: dict[str, int], shapes: Shapes) -> None:
        self.model, self.order, self.shapes = model, order, shapes
        self.batch = Batch(invokes)
        self.step = 0
        self._tokens, self._mask = self.batch.tokens, self.batch.attention_mask
        self._layer: int | None = None  # the block to come; None: the step has not begun
        self._x: Any = None  # what goes into it
        self._left: Any = None  # what left it, where the pass stopped as it did
        self._span: Any = None
        self.decoders = {i: i.decoder.copy() for i in invokes if i.decoder is not None}
        self._cache = model.new_cache() if self.decoders else None
        self._hooks_at: dict[int, list[str]] = {}  # of each step, where somebody listens
        self._hooks = list(order)
        self._busy = False

    @property
    def boundaries(self) -> list[tuple[Stage, int | None]]:
        """Stages from which on a pass that stopped can go on, the latest first, each with the block to come."""
        if self._layer is None:
            return [(Stage(self.step, BEGIN), None)]
        layers = [self._layer] if self._left is None else [self._layer + 1, self._layer]
        return [(Stage(self.step, self._start_of(layer)), layer) for layer in layers]

    def _start_of(self, layer: int) -> int:
        done = layer == len(self.model.blocks)
        return self.order["ln_final.hook_in" if done else f"blocks.{layer}.hook_resid_pre"]

    def go_on_from(self, layer: int | None) -> None:
        """Go on with a block that is one of `boundaries`."""
        if layer != self._layer:
            self._layer, self._x = layer, self._left
        self._left = None

    def go(self, run: Run, stages: dict[Stage, list[Node]]) -> None:
        """Run the nodes of all stages, and no more of the model than they need."""
        self._run, self._stages = run, stages
        self._hooks_at = {}
        for stage in stages:
            if 0 <= stage.order < len(self._hooks) and stage < END:
                self._hooks_at.setdefault(stage.step, []).append(self._hooks[stage.order])
        self._last = max((stage for stage in stages if stage != AFTER), default=Stage(-1, 0))
        if self._cache is not None and self._layer is not None:
            self._cache.rewind(self._layer, self.batch.n_pos + self.step - 1 if self.step else 0)
        with suppress(Halt):
            self._through_steps()
        run.run_all(stages.get(AFTER, []))

    def _through_steps(self) -> None:
        while self._last.step >= self.step and not self._ended:
            with self._listening():
                logits = self._through_blocks()
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
        model = self.model
        if self._layer is None:
            self._x, self._span = model.begin(self._tokens, self._mask, self._cache)
            self._layer = 0
        unneeded = unneeded_blocks(self, self._stages) if self._cache is None else ()
        while self._layer < len(model.blocks):
            if self._layer not in unneeded:
                self._x = model.blocks[self._layer](self._x, self._span)
            else:
                self._x = self._past(self._layer, self._x)
            self._layer += 1
        return self._finish(self._x)

    def _past(self, layer: int, x: Tensor) -> Tensor:
        """What leaves a block that need not run."""
        for hook in (f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.hook_resid_post"):
            if Stage(self.step, self.order[hook]) in self._stages:
                x = self.arrive(hook, x)
        return x

    def _finish(self, x: Tensor) -> Tensor:
        """The logits; of the last position only, where nobody looks at the others."""
        model, listened = self.model, self._hooks_at.get(self.step, ())
        if self._cache is None:
            only_last = reads_only_last(self._run, self._stages, self.order)
        else:
            only_last = all(i.last_only for i in self.batch.invokes) or not UNEMBED.intersection(listened)
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
        here, self.step = Stage(self.step, self._choice), self.step + 1
        self._run.run_all(self._stages.get(here, []))

    @property
    def _choice(self) -> int:
        return len(self.order)

    def _give(self, kind: type, invoke: Invoke, stage: Stage, value: Any) -> None:
        for node in self._stages.get(stage, []):
            if isinstance(node, kind) and node.invoke is invoke:  # type: ignore[attr-defined]  # a kind of Given
                self._run.give(node, value)

    # --- hook points ---------------------------------------------------------------------------------------------

    @contextmanager
    def _listening(self) -> Iterator[None]:
        here = self._hooks_at.get(self.step, ())
        handles = [self.model.hook_points[hook].attach(Station(self.arrive)) for hook in here]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def arrive(self, hook: str, value: Tensor) -> Tensor:
        """The pass is at a hook point with a value; what it goes on with."""
        if self._busy:
            return value  # a module called inside the body passes its hook points too
        stage = Stage(self.step, self.order[hook])
        nodes = self._stages[stage]
        views = [node for node in nodes if node.view is not None and node in self._run.differentiated]
        changed = self._hand_out(hook, value, nodes, views)
        self._busy = True
        try:
            self._run.run_all(nodes)
        finally:
            self._busy = False
        for node in views:  # the model goes on with what gradients are asked of
            if node.storage.place is not None:
                changed[node.storage.place] = node.view.undone(self._run.values[node])
        changed |= {
            node.place: self._run.take(node) for node in nodes if isinstance(node, Put) and node in self._run.done
        }
        out = self._put_back(value, changed)
        if stage == self._last:
            self._left = out if hook == f"blocks.{self._layer}.hook_resid_post" else None
            raise Halt
        return out

    def _hand_out(self, hook: str, value: Tensor, nodes: list[Node], views: list[Node]) -> dict[Place, Tensor]:
        """Give each prompt its own part; those that the model must take back."""
        viewed = {node.storage.place for node in views}
        edited = {node.storage.place for node in nodes if isinstance(node, Call) and node.writes}
        changed: dict[Place, Tensor] = {}
        for rows, invoke in self.batch.rows:
            place = invoke.places.get((hook, self.step))
            if place is None or not self._run.is_reached(place.arrived):
                continue
            piece = self.batch.own(value, self.shapes.axes(hook), rows, place.arrived.meta.shape)
            if place not in edited:
                piece = piece.contiguous()  # as it is when the prompt runs alone
            followed = place.arrived in self._run.differentiated or place in viewed
            if followed:  # an alias, whose gradient is that of this place alone
                piece = piece.view_as(piece) if piece.requires_grad else piece.detach().requires_grad_()
            if place in edited:
                piece = piece.clone(memory_format=torch.contiguous_format)  # nobody else's memory is edited
            if place in edited or followed:
                changed[place] = piece
            self._run.give(place.arrived, piece)
        return changed

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
