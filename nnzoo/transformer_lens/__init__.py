"""A home for HookedTransformer: TransformerLens 2 and 3's API on nnzoo's models of GPT-2, LLaMA and Mistral.

TransformerLens 4 has no HookedTransformer any more. Code that was written for it runs here with another import:

>>> import nnzoo.transformer_lens as transformer_lens
>>> model = transformer_lens.HookedTransformer.from_pretrained("nnzoo/tiny-gpt2")
>>> loss = model("The capital of France is Paris", return_type="loss")

Names, defaults and values are those of TransformerLens 3.9; the models, hook points and caches are nnzoo's own.
"""

from typing import Any

from nnzoo.transformer_lens import (
    components,
    evals,
    head_detector,
    hook_points,
    loading_from_pretrained,
    past_key_value_caching,
    patching,
    train,
    utilities,
    utils,
)
from nnzoo.transformer_lens import loading_from_pretrained as loading
from nnzoo.transformer_lens.ActivationCache import ActivationCache
from nnzoo.transformer_lens.FactoredMatrix import FactoredMatrix
from nnzoo.transformer_lens.hook_points import HookPoint
from nnzoo.transformer_lens.HookedRootModule import HookedRootModule
from nnzoo.transformer_lens.HookedTransformer import HookedTransformer
from nnzoo.transformer_lens.HookedTransformerConfig import HookedTransformerConfig
from nnzoo.transformer_lens.past_key_value_caching import (
    HookedTransformerKeyValueCache,
    HookedTransformerKeyValueCacheEntry,
    TransformerLensKeyValueCache,
    TransformerLensKeyValueCacheEntry,
)
from nnzoo.transformer_lens.refusals import Refused
from nnzoo.transformer_lens.SVDInterpreter import SVDInterpreter

EasyTransformer, EasyTransformerConfig = HookedTransformer, HookedTransformerConfig  # before version 1

__all__ = [
    "ActivationCache",
    "EasyTransformer",
    "EasyTransformerConfig",
    "FactoredMatrix",
    "HookPoint",
    "HookedRootModule",
    "HookedTransformer",
    "HookedTransformerConfig",
    "HookedTransformerKeyValueCache",
    "HookedTransformerKeyValueCacheEntry",
    "SVDInterpreter",
    "TransformerLensKeyValueCache",
    "TransformerLensKeyValueCacheEntry",
    "components",
    "evals",
    "head_detector",
    "hook_points",
    "loading",
    "loading_from_pretrained",
    "past_key_value_caching",
    "patching",
    "train",
    "utilities",
    "utils",
]

REFUSED = {
    "HookedEncoder": "nnzoo has no BERT",
    "HookedEncoderDecoder": "nnzoo has no T5",
    "HookedAudioEncoder": "nnzoo has no audio models",
    "BertNextSentencePrediction": "nnzoo has no BERT",
    "TransformerBridge": "it is TransformerLens 3's other class; nnzoo.LanguageModel goes by Hugging Face's paths",
}


def __getattr__(name: str) -> Any:
    if name in REFUSED:
        return Refused(name, REFUSED[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
