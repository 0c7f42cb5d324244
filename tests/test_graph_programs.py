"""Every program that nnsight's users write, its traces stored as JSON and tensors, read back, and run again."""

import importlib
import pkgutil
from typing import Any

import pytest
import torch
from torch import Tensor

import nnzoo
import programs
import speaking
from nnzoo import LanguageModel
from nnzoo.tracing.graph_object import Graph
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.tracer import Tracer
from programs import N_LAYERS, PROGRAMS, Program

for module in pkgutil.iter_modules(programs.__path__):
    importlib.import_module(f"programs.{module.name}")

CASES = [pytest.param(one, one.families[0], id=f"{one.name}-{one.families[0]}") for one in PROGRAMS]


@pytest.mark.parametrize(("program", "family"), CASES)
def test_a_stored_trace_gives_the_values_it_gave(
    program: Program, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LanguageModel(speaking.folder(family, N_LAYERS), **program.options)
    traces: list[tuple[bytes, dict[int, Tensor], str]] = []
    finish = Tracer._finish

    def storing(tracer: Tracer) -> None:
        for last in tracer._at_the_end:
            last(tracer)
        tracer._at_the_end.clear()
        graph = tracer.graph
        alive = [lazy for ref in tracer.recorder.alive if (lazy := ref()) is not None]
        saved = {lazy._node.index: lazy for lazy in alive if lazy._node in tracer.recorder.saved}
        stored, shown = graph.to_bytes(), str(graph) if len(graph) < 40 else ""
        del alive
        finish(tracer)
        values = {n: value.detach().clone() for n, value in saved.items() if not isinstance(value, LazyTensor)}
        traces.append((stored, values, shown))

    monkeypatch.setattr(Tracer, "_finish", storing)
    program(model, nnzoo)
    monkeypatch.setattr(Tracer, "_finish", finish)
    for stored, values, shown in traces:
        graph = Graph.from_bytes(stored)
        if any(not value.is_meta for value in values.values()):  # a scan has shapes only
            again = graph.run(model)
            assert values.keys() <= again.keys()
            for number, value in values.items():
                assert_identical(again[number], value)
        else:
            graph.on(model)
        assert not shown or len(described(str(graph))) == len(described(shown)) == len(graph)


def assert_identical(ours: Any, theirs: Any) -> None:
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert torch.equal(ours.detach().nan_to_num(), theirs.nan_to_num())


def described(text: str) -> list[str]:
    """The lines of the nodes."""
    return [line for line in text.partition("passes:")[0].splitlines() if line.startswith("%")]
