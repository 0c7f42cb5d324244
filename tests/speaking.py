"""Tiny Hugging Face folders that take text: deep, float64, random, with a tokenizer. Nothing here knows nnzoo.

The API reference speaks of `h[6]` and `layers[20]`, and of sentences, so the folders of families.py do not do. Matrices
are drawn so that attention neither saturates nor vanishes: every position then matters to every later one.
"""

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from layout import ROOT

logging.set_verbosity_error()
logging.disable_progress_bar()

TINY = ROOT / "weights" / "tiny" / "gpt2"
N_CTX = 96
CLASSES = {
    "gpt2": (GPT2Config, GPT2LMHeadModel),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
}
# the words of the API reference and of programs/ that the tiny corpus does not have, so that a word is a token
WORDS = """Hello Hello world First First prompt Second prompt cat dog sat ran on through the The Once upon time quick
    brown fox jumps Colosseum Eiffel Tower Roman city is in a of over lazy love hate""".split()


def folder(family: str, n_layers: int = 7) -> Path:
    """A checkpoint that `save_pretrained` wrote, with a tokenizer."""
    return _folder(family, n_layers)


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of the tiny checkpoints, with a few more words."""
    path = Path(_home().name) / "tokenizer"
    path.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / file, path)
    values = json.loads((path / "tokenizer.json").read_text())
    vocabulary = values["model"]["vocab"]
    for piece in (piece for word in WORDS for piece in (word, f"Ġ{word}")):
        vocabulary.setdefault(piece, len(vocabulary))
    (path / "tokenizer.json").write_text(json.dumps(values))
    return AutoTokenizer.from_pretrained(path)


@cache
def _home() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="nnzoo-speaking-")  # goes with the process


@cache
def _folder(family: str, n_layers: int) -> Path:
    config_class, model_class = CLASSES[family]
    model = model_class(config_class(**_sizes(family, n_layers), bos_token_id=0, eos_token_id=0)).double()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        bound = 0.4 if parameter.ndim == 2 else 1
        torch.nn.init.uniform_(parameter, -bound, bound, generator=generator)
        if "norm" in name or "ln_" in name:
            parameter.data += 1
    path = Path(_home().name) / f"{family}-{n_layers}"
    model.save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def _sizes(family: str, n_layers: int) -> dict[str, int | bool]:
    if family == "gpt2":
        return {
            "vocab_size": len(tokenizer()), "n_positions": N_CTX, "n_embd": 48, "n_layer": n_layers, "n_head": 4,
            "tie_word_embeddings": False,  # a random tied head says the last token again
        }  # fmt: skip
    grouped = {
        "vocab_size": len(tokenizer()), "max_position_embeddings": N_CTX, "hidden_size": 48, "intermediate_size": 64,
        "num_hidden_layers": n_layers, "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    return grouped | ({"sliding_window": 5} if family == "mistral" else {})
