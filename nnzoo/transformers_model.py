"""TransformersModel: the name and the outputs of newer nnsight's programs."""

from pathlib import Path
from typing import Any

from nnzoo.language_model import LanguageModel


class TransformersModel(LanguageModel):
    """A LanguageModel whose decoder blocks give the bare tensor, as transformers 5 and nnsight 0.7 have it.

    `model.transformer.h[1].output` is [batch pos d_model]; in a LanguageModel it is the tuple `(hidden,)`.

    >>> model = TransformersModel("nnzoo/tiny-gpt2", task="text-generation", device_map="cpu", dispatch=True)
    >>> with model.trace("The capital of France is"):
    ...     last = model.transformer.h[1].output[:, -1].save()
    >>> last.shape
    torch.Size([1, 96])
    """

    def __init__(self, path_or_id: str | Path, *, block_output: str = "tensor", **options: Any) -> None:
        super().__init__(path_or_id, block_output=block_output, **options)
