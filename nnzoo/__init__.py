"""Transformer language models to look inside: clean models, named hook points, lazy traces."""
