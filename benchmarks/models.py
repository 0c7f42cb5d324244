"""Ours and theirs, read from one folder."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from benchmarks.folders import Size
from benchmarks.setup import Setup
from nnzoo import LanguageModel
from nnzoo.architectures.hooked_model import HookedModel

logging.disable_progress_bar()


@dataclass
class Pair:
    """One checkpoint, as transformers and as nnzoo read it."""

    size: Size
    setup: Setup

    @cached_property
    def folder(self) -> Path:
        return self.size.folder(self.setup.home, self.setup.device, self.setup.dtype)

    @cached_property
    def language_model(self) -> LanguageModel:
        return LanguageModel(self.folder, device=self.setup.device, dtype=self.setup.dtype).dispatch()

    @property
    def ours(self) -> HookedModel:
        return self.language_model._model

    @cached_property
    def theirs(self) -> PreTrainedModel:
        how = {"attn_implementation": "sdpa", "dtype": self.setup.dtype}
        return AutoModelForCausalLM.from_pretrained(self.folder, **how).eval().to(self.setup.device)

    def tokens(self, batch: int, n_pos: int) -> Tensor:
        """Random ids, the same ones every time."""
        ids = torch.randint(0, self.size.d_vocab, (batch, n_pos), generator=torch.Generator().manual_seed(0))
        return ids.to(self.setup.device)

    @property
    def blocks(self) -> Any:
        """The decoder blocks, by Hugging Face's path."""
        model = self.language_model
        return model.transformer.h if self.size.family == "gpt2" else model.model.layers
