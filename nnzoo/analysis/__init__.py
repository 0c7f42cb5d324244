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

from nnzoo.analysis.ablation import ablate, ablated
from nnzoo.analysis.attention import Attention, attention_patterns
from nnzoo.analysis.attribution import attribute_logits
from nnzoo.analysis.causal_tracing import causal_trace
from nnzoo.analysis.circuits import (
    FactoredMatrix,
    composition_scores,
    copying_scores,
    full_ov_circuit,
    full_qk_circuit,
    ov_circuit,
    qk_circuit,
)
from nnzoo.analysis.colored_text import ColoredText, color_tokens
from nnzoo.analysis.edges import attribute_edges
from nnzoo.analysis.gradients import attribute_patches, integrated_gradients
from nnzoo.analysis.heads import detect_heads, induction_scores, repeated_tokens
from nnzoo.analysis.lens import Lens, logit_lens
from nnzoo.analysis.losses import token_losses
from nnzoo.analysis.metrics import Logit, Probability
from nnzoo.analysis.patching import patch_activations
from nnzoo.analysis.paths import patch_paths
from nnzoo.analysis.probes import Probe, probe_layers, train_probe
from nnzoo.analysis.results import Axis, Effects, Entry, Result
from nnzoo.analysis.sae import SAE, SAEConfig, Spliced, feature_activations, spliced
from nnzoo.analysis.sae_files import load_sae
from nnzoo.analysis.steering import SteeringVector, steering_vector
from nnzoo.analysis.steps import Steps, generation_steps
from nnzoo.analysis.tuned_lens import TunedLens, train_tuned_lens

__all__ = [
    "SAE",
    "Attention",
    "Axis",
    "ColoredText",
    "Effects",
    "Entry",
    "FactoredMatrix",
    "Lens",
    "Logit",
    "Probability",
    "Probe",
    "Result",
    "SAEConfig",
    "Spliced",
    "SteeringVector",
    "Steps",
    "TunedLens",
    "ablate",
    "ablated",
    "attention_patterns",
    "attribute_edges",
    "attribute_logits",
    "attribute_patches",
    "causal_trace",
    "color_tokens",
    "composition_scores",
    "copying_scores",
    "detect_heads",
    "feature_activations",
    "full_ov_circuit",
    "full_qk_circuit",
    "generation_steps",
    "induction_scores",
    "integrated_gradients",
    "load_sae",
    "logit_lens",
    "ov_circuit",
    "patch_activations",
    "patch_paths",
    "probe_layers",
    "qk_circuit",
    "repeated_tokens",
    "spliced",
    "steering_vector",
    "token_losses",
    "train_probe",
    "train_tuned_lens",
]
