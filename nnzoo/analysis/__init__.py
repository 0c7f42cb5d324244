"""What researchers do with a hooked model, ready to use: on LanguageModels and native models of every family.

Every function takes a `LanguageModel` or a native model (`nnzoo.load`), prompts as texts or ids, and gives back a
`Result`: numbers with named axes, which print as a table and become a data frame or a figure.

>>> from nnzoo import LanguageModel
>>> from nnzoo.analysis import patch_activations
>>> model = LanguageModel("nnzoo/tiny-llama")
>>> clean, corrupted = "The capital of France is", "The capital of Italy is"
>>> patched = patch_activations(model, corrupted, clean, (" Paris", " Rome"), at="resid_pre")
>>> print(patched.restored.at(pos=-1))
patching resid_pre, pos  is (share restored)
layer
0          0.00
...
"""

from nnzoo.analysis.attribution import attribute_logits
from nnzoo.analysis.causal_tracing import causal_trace
from nnzoo.analysis.edges import attribute_edges
from nnzoo.analysis.gradients import attribute_patches, integrated_gradients
from nnzoo.analysis.heads import detect_heads, induction_scores, repeated_tokens
from nnzoo.analysis.lens import Lens, logit_lens
from nnzoo.analysis.losses import token_losses
from nnzoo.analysis.metrics import Logit, Probability
from nnzoo.analysis.patching import patch_activations
from nnzoo.analysis.paths import patch_paths
from nnzoo.analysis.results import Axis, Effects, Entry, Result

__all__ = [
    "Axis",
    "Effects",
    "Entry",
    "Lens",
    "Logit",
    "Probability",
    "Result",
    "attribute_edges",
    "attribute_logits",
    "attribute_patches",
    "causal_trace",
    "detect_heads",
    "induction_scores",
    "integrated_gradients",
    "logit_lens",
    "patch_activations",
    "patch_paths",
    "repeated_tokens",
    "token_losses",
]
