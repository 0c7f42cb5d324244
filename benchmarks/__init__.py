"""How fast nnzoo is, next to transformers and others: `python -m benchmarks.run`."""
