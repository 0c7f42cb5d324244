"""Ours and theirs, read from one folder."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from benchmarks.folders import Size
from nnzoo import LanguageModel
from nnzoo.architectures.hooked_model import HookedModel

logging.disable_progress_bar()


@dataclass
class Pair:
    """One checkpoint, as transformers and as nnzoo read it."""

    size: Size
    home: Path

    @cached_property
    def folder(self) -> Path:
        return self.size.folder(self.home)

    @cached_property
    def language_model(self) -> LanguageModel:
        return LanguageModel(self.folder).dispatch()

    @property
    def ours(self) -> HookedModel:
        return self.language_model._model

    @cached_property
    def theirs(self) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self.folder, attn_implementation="sdpa").eval()

    def tokens(self, batch: int, n_pos: int) -> Tensor:
        """Random ids, the same ones every time."""
        return torch.randint(0, self.size.d_vocab, (batch, n_pos), generator=torch.Generator().manual_seed(0))
