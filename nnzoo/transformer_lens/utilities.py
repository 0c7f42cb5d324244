"""`utils` by its name in TransformerLens 3."""

from nnzoo.transformer_lens.utils import *  # noqa: F403
