"""Lazy traces: a body records a graph, leaving it plans and runs the model just as far as the graph needs.

lazy.py     LazyTensor: looks like a tensor, records what is done to it
infer.py    shapes, dtypes and aliases of recorded operations, on the meta device
graph.py    what was recorded: nodes, the storages they share, the places they stand at
run.py      one pass of the model, with the graph's nodes run where they belong
tracer.py   the `with` block
envoy.py    Hugging Face's module paths on top of it
"""
