"""Generation: one token after the other, by the options of transformers' `generate`.

`generate` is the loop. What it chooses with is apart from it, for whoever runs the forward passes himself: `Options`
says how tokens are chosen, a `Decoder` chooses them for the rows of one batch, step by step.
"""

from nnzoo.generation.decoder import Decoder
from nnzoo.generation.loop import generate, options_for, run
from nnzoo.generation.options import Options
from nnzoo.generation.randomness import adopt, fork
from nnzoo.generation.refusals import OptionError
from nnzoo.generation.streaming import Stream, streamed

__all__ = [
    "Decoder",
    "OptionError",
    "Options",
    "Stream",
    "adopt",
    "fork",
    "generate",
    "options_for",
    "run",
    "streamed",
]
