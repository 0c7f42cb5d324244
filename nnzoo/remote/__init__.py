"""Traces on a server: what is sent is the graph, which is data, and what comes back are tensors."""
