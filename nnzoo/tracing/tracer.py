"""The `with` block of a trace: its body records; leaving it runs the model and fills in what is still held."""

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from nnzoo.tracing.graph import Node
from nnzoo.tracing.lazy import LazyTensor, become
from nnzoo.tracing.recorder import Recorder, TraceError
from nnzoo.tracing.run import Run
from nnzoo.tracing.shapes import shapes_of

if TYPE_CHECKING:
    from nnzoo.language_model import LanguageModel


NOT_YET = {"all", "cache", "graph", "invoke", "iter", "next"}


class Tracer:
    """One forward pass of a model, looked into.

    >>> from nnzoo import LanguageModel
    >>> model = LanguageModel("nnzoo/tiny-gpt2")
    >>> with model.trace("The capital of France is") as tracer:
    ...     hidden = model.transformer.h[2].output[0].save()
    >>> hidden.ndim
    3
    """

    def __init__(
        self,
        model: "LanguageModel",
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Bool[Tensor, "batch pos"] | None,
    ) -> None:
        self.model, self.tokens, self.attention_mask = model, tokens, attention_mask
        self.recorder = Recorder(
            points=model.skeleton.hook_points,
            order=model.order,
            shape_of=shapes_of(model.skeleton, *tokens.shape),
            device=model.device,
            run=self._run,
        )

    def __enter__(self) -> "Tracer":
        self.model.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.model.leave(self)
        recorder = self.recorder
        try:
            if kind is None:
                _fill_in(recorder, self._run)
        finally:
            recorder.close()

    @property
    def result(self) -> LazyTensor:
        """What the model gives: the logits [batch pos d_vocab]."""
        return self.recorder.read("unembed.hook_out")

    def barrier(self, n_participants: int = 0) -> None:
        """Accepted, and without effect: the order of a body's statements does not bind the pass."""

    def __getattr__(self, name: str) -> Any:
        if name in NOT_YET:
            raise AttributeError(f"tracer.{name} is not implemented yet; a trace is of one prompt: model.trace(prompt)")
        raise AttributeError(f"the tracer has no {name!r}")

    def stop(self) -> None:
        """Accepted, and without effect: a trace never runs beyond what is asked of it."""

    def _run(self, recorder: Recorder, roots: list[Node]) -> dict[Node, Tensor]:
        native = self.model._model
        with self.model.lock, torch.set_grad_enabled(recorder.needs_grad):
            return Run(roots, recorder.puts).execute(
                native.hook_points, lambda: native.forward(self.tokens, self.attention_mask)
            )


def _fill_in(recorder: Recorder, run: Callable[[Recorder, list[Node]], dict[Node, Tensor]]) -> None:
    """Run the model for all lazy tensors that anybody still holds, and turn them into its values."""
    held = [lazy for ref in recorder.alive if (lazy := ref()) is not None]
    recorder.alive = []  # swapping refuses tensors with weak references
    if not held:
        return
    values = run(recorder, [lazy._node for lazy in held])
    sharing = _count_storages(values)
    refused = []
    while held:
        lazy = held.pop()
        node = lazy._node
        try:
            become(lazy, _compact(values[node], sharing), is_logits=recorder.is_logits(node))
        except RuntimeError:  # PyTorch swaps no tensor that somebody has a weak reference to
            refused.append(f"{lazy!r}, made at {node.line}")
    if refused:
        raise TraceError(
            f"values with weak references to them cannot be filled in: {'; '.join(refused)}. All others are"
        )


def _count_storages(values: dict[Node, Tensor]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for value in values.values():
        pointer = value.untyped_storage().data_ptr()
        counts[pointer] = counts.get(pointer, 0) + 1
    return counts


def _compact(value: Tensor, sharing: dict[int, int]) -> Tensor:
    """A small slice does not keep a large activation alive, unless another value needs the same memory."""
    storage = value.untyped_storage()
    if sharing[storage.data_ptr()] > 1 or storage.nbytes() <= 2 * value.nbytes:
        return value
    return value.clone()
