"""The graph of a trace as an object: it prints, it draws, it is stored, it runs on a model.

with model.trace(prompt) as tracer:
    logits = model.output[:, -1].save()
    graph = tracer.graph             # inside the body: what the body was given is kept
print(graph)
graph.save("program.safetensors")
Graph.load("program.safetensors").run(model)
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor

from nnzoo.tracing.entries import Program, about, entries_of, prompt_of
from nnzoo.tracing.filling import fill_in
from nnzoo.tracing.functions import GraphError
from nnzoo.tracing.graph import Invoke, Node
from nnzoo.tracing.graph_html import fragment, page
from nnzoo.tracing.graph_json import decode, encode
from nnzoo.tracing.graph_plan import PlanView, place_names, view_plan
from nnzoo.tracing.graph_text import text
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.recorder import Recorder

if TYPE_CHECKING:
    from nnzoo.language_model import LanguageModel
    from nnzoo.tracing.tracer import Tracer

_CPU = torch.device("cpu")


class Values(dict[int, Tensor]):
    """The saved values of a run, by the numbers of their nodes.

    `gradients` are those of tensors that were given to the graph and require grad, by the tensors' names.
    """

    gradients: dict[str, Tensor]


@dataclass
class Recorded:
    """A program on a model: what a trace has recorded, or what was read and recorded again."""

    model: "LanguageModel"
    recorder: Recorder
    execution: Any  # an Execution; a scan has another
    invokes: list[Invoke]
    grad: bool
    max_batch: int | None

    @property
    def roots(self) -> list[Node]:
        """What is asked for: what is held, while the body runs; then what was held at its end, or is to come back."""
        if self.recorder.roots or not self.recorder.open:
            return self.recorder.roots
        alive = {lazy._node for ref in self.recorder.alive if (lazy := ref()) is not None}
        return sorted(alive, key=lambda node: node.index)

    def program(self, nodes: Sequence[Node] | None = None, saved: Collection[Node] | None = None) -> Program:
        """It as plain data; or of some nodes alone, which must be all that the saved ones need."""
        recorder = self.recorder
        nodes = recorder.nodes if nodes is None else nodes
        numbers = {node: number for number, node in enumerate(nodes)}
        return Program(
            about=about(self.model),
            prompts=[prompt_of(invoke) for invoke in self.invokes],
            entries=entries_of(nodes),
            saved=tuple(sorted(numbers[node] for node in (recorder.saved if saved is None else saved))),
            kept_gradients=tuple(sorted(numbers[node] for node in recorder.differentiated if node in numbers)),
            grad=self.grad,
            needs_grad=recorder.needs_grad,
            max_batch=self.max_batch,
            modes=recorder.modes,
        )

    def check_tensors(self) -> None:
        """Raise GraphError where tensors that the body was given have gone, or are others now."""
        recorder = self.recorder
        if not recorder.open and recorder.given and not recorder.keeps_tensors:
            raise GraphError(
                "the trace is over and has let go of the tensors that its body was given, so its graph can be printed "
                "but not stored or run; ask for `tracer.graph` inside the body"
            )
        for node in recorder.given:
            if any(tensor._version != version for tensor, version in node.versions):
                raise GraphError(f"%{node.index}, recorded at {node.line}: a tensor that it uses was changed since")

    def plan(self) -> PlanView:
        """What will run, or did."""
        return view_plan(self.model, self.recorder, self.roots, self.max_batch)


class Graph:
    """What a trace records: `tracer.graph`, or read by `Graph.load`, `Graph.from_json`.

    >>> from nnzoo import LanguageModel
    >>> model = LanguageModel("nnzoo/tiny-gpt2")
    >>> with model.trace("The capital of France is") as tracer:
    ...     model.transformer.h[1].mlp.output[:] = 0
    ...     logits = model.output[0, -1].save()
    ...     graph = tracer.graph
    >>> read = Graph.from_json(graph.to_json(), graph.tensors)
    >>> (again,) = read.run(model).values()
    >>> torch.equal(again, logits)
    True
    """

    def __init__(self, recorded: Recorded | None, stored: tuple[str, dict[str, Tensor]] | None = None) -> None:
        self._recorded, self._stored = recorded, stored
        self._read = None if stored is None else decode(*stored, _CPU)
        self._tensors: dict[str, Tensor] = {}  # those that were read, as the program holds them

    @classmethod
    def of(cls, tracer: "Tracer") -> "Graph":
        """The graph of a trace, as far as its body has come."""
        max_batch = getattr(tracer._execution, "_max_batch", None)  # a scan has none
        model: Any = tracer.model
        recorded = Recorded(model, tracer.recorder, tracer._execution, tracer.invokes, tracer._grad, max_batch)
        return cls(recorded)

    @property
    def program(self) -> Program:
        """The prompts and the nodes as plain data."""
        if self._read is not None:
            return self._read
        assert self._recorded is not None, "what was not read was recorded"
        return self._recorded.program()

    # --- storing -------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The structure; its tensors are `tensors`. Raises GraphError where something in it cannot be written down."""
        return self._encoded()[0]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that the JSON names, on the CPU."""
        return self._encoded()[1]

    def _encoded(self) -> tuple[str, dict[str, Tensor]]:
        if self._stored is not None:
            return self._stored
        assert self._recorded is not None, "what was not read was recorded"
        self._recorded.check_tensors()
        model = self._recorded.model
        return encode(self._recorded.program(), model._native, model.device)

    @classmethod
    def from_json(cls, text: str, tensors: Mapping[str, Tensor]) -> "Graph":
        """The graph of `to_json()` and `tensors`. Raises GraphError for anything else, and runs nothing."""
        return cls(None, (text, dict(tensors)))

    def to_bytes(self) -> bytes:
        """JSON and tensors together, as safetensors has them."""
        text, tensors = self._encoded()
        return save(tensors, metadata={"graph": text})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Graph":
        """The graph of `to_bytes()`. Raises GraphError for anything else."""
        return cls.from_json(_metadata(data), _tensors(data))

    def save(self, path: str | Path) -> None:
        """Write one file, which `Graph.load` reads: safetensors, with the JSON in its header."""
        Path(path).write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> "Graph":
        """The graph of a file that `save` wrote. Raises GraphError for anything else."""
        return cls.from_bytes(Path(path).read_bytes())

    # --- running -------------------------------------------------------------------------------------------------

    def on(self, model: "LanguageModel") -> "Graph":
        """The graph on a model, where it shows its passes. Raises GraphError where it does not fit the model."""
        from nnzoo.tracing.replay import replay

        if self._stored is not None:
            program = decode(*self._stored, model.device)
        else:
            assert self._recorded is not None, "what was not read was recorded"
            self._recorded.check_tensors()
            program = self._recorded.program()
        new = replay(program, model)
        graph = Graph(Recorded(model, new.recorder, new.execution, new.invokes, new.grad, program.max_batch))
        new.recorder.keeps_tensors = True
        graph._tensors = program.tensors
        return graph

    def run(self, model: "LanguageModel") -> Values:
        """Run it on a model: what was saved, by the numbers of the nodes; what a generation did not come to is absent.

        Raises GraphError where it does not fit the model, and what the functions in it raise.
        """
        graph = self.on(model)
        assert graph._recorded is not None, "on() records"
        recorder, execution = graph._recorded.recorder, graph._recorded.execution
        roots = recorder.roots
        if not roots and not recorder.effects:
            raise GraphError("nothing in the graph is saved: value.save() says what is to come back")
        lazies = [LazyTensor(node, recorder) for node in roots]
        recorder.alive = []
        with torch.inference_mode(False), torch.enable_grad():
            found = execution.finish(recorder, roots, carries_graph=graph._recorded.grad)
            fill_in([*lazies], found, with_graph=graph._recorded.grad or not recorder.effects)
        values = Values({node.index: lazy for node, lazy in zip(roots, lazies, strict=True) if node in found})
        values.gradients = {name: t.grad for name, t in graph._tensors.items() if t.grad is not None}
        recorder.close()
        return values

    # --- looking at it -------------------------------------------------------------------------------------------

    def _shown(self) -> tuple[Program, dict[str, str], PlanView | None]:
        if self._recorded is None:
            return self.program, {}, None
        return self.program, place_names(self._recorded.model), self._recorded.plan()

    def __str__(self) -> str:
        return text(*self._shown())

    def __repr__(self) -> str:
        return f"<Graph of {len(self)} nodes, {len(self.program.prompts)} prompts>"

    def __len__(self) -> int:
        return len(self.program.entries)

    def to_html(self) -> str:
        """The picture as one page that needs nothing else: no script, no network, light or dark."""
        return page(*self._shown())

    def _repr_html_(self) -> str:
        return fragment(*self._shown())


def _metadata(data: bytes) -> str:
    size = int.from_bytes(data[:8], "little")
    try:
        return json.loads(data[8 : 8 + size])["__metadata__"]["graph"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise GraphError("this is no graph: a safetensors file whose header holds one is expected") from error


def _tensors(data: bytes) -> dict[str, Tensor]:
    try:
        return load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise GraphError(f"this is no graph: {error}") from error
