"""A scan: a body without a pass. What it holds are shapes and dtypes, and meta tensors afterwards."""

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from nnzoo.prompts import Prompt
from nnzoo.tracing.graph import Node
from nnzoo.tracing.recorder import Recorder, TraceError
from nnzoo.tracing.tracer import Tracer

if TYPE_CHECKING:
    from nnzoo.tracing.traced import TracedModel


class Unexecuted:
    """Stands where a trace has its execution: no weight is read and nothing computed."""

    decoders: ClassVar[dict] = {}  # nothing is drawn

    def look(self, recorder: Recorder, roots: list[Node]) -> dict[Node, Any]:
        """Numbers are not there. Raises TraceError."""
        names = ", ".join(f"{node} at {node.line}" for node in roots)
        raise TraceError(
            f"a scan computes nothing, so nobody can look at {names}; it knows .shape and .dtype. For numbers: "
            "model.trace(prompt)"
        )

    def finish(self, recorder: Recorder, roots: list[Node], *, carries_graph: bool) -> dict[Node, Any]:
        """A meta tensor for each value whose shape is known without numbers."""
        return {node: torch.empty_like(node.meta) for node in roots if node.meta is not None}


class ScanTracer(Tracer):
    """A trace that never runs: `with model.scan(prompt): ...`."""

    ended = "a scan, and its shape depends on numbers"

    def __init__(self, model: "TracedModel", prompt: Prompt | None) -> None:
        super().__init__(model, prompt)
        self._execution = Unexecuted()
        self.recorder._run = self._execution.look

    def reaches(self, step: int) -> bool:
        """Every step that there is at most."""
        return step < self.most_steps
