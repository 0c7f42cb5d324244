"""The checkpoints that are measured: Hugging Face folders with random weights, made once and kept."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

WORDS = 64  # of a stand-in vocabulary: peers ask a folder for a tokenizer, though prompts are ids


@dataclass(frozen=True)
class Size:
    """A model to measure."""

    name: str
    family: str
    n_layers: int
    d_model: int
    n_heads: int
    d_mlp: int
    d_vocab: int
    tiny: bool = False  # its time is overhead, and its targets are others
    n_ctx: int = 1024
    n_kv_heads: int | None = None  # None: n_heads

    def folder(self, home: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Path:
        """Its checkpoint below `home`, made on a device and written if it is not there."""
        kind = "" if dtype == torch.float32 else f" {dtype}".replace("torch.", "")
        path = home / f"{self.name} {self.n_layers}x{self.d_model}{kind}".replace(" ", "-").lower()
        if not (path / "tokenizer.json").exists():  # written last
            _write(self, path, device, dtype)
        return path


SIZES = [
    Size("GPT-2 small", "gpt2", 12, 768, 12, 3072, 50257),
    Size("LLaMA 160M", "llama", 12, 768, 12, 2048, 32000),
    Size("tiny GPT-2", "gpt2", 12, 96, 4, 384, 1000, tiny=True),
    Size("tiny LLaMA", "llama", 12, 96, 4, 256, 1000, tiny=True),
]
ON_GPU = [SIZES[0], Size("LLaMA 1B", "llama", 16, 2048, 32, 8192, 128256, n_kv_heads=8)]
GROWING = Size("LLaMA 13M", "llama", 12, 256, 8, 1024, 1000, n_ctx=2048)
MINIATURES = [
    Size("GPT-2 miniature", "gpt2", 2, 16, 2, 32, 100),
    Size("LLaMA miniature", "llama", 2, 16, 2, 32, 100, tiny=True),
]


def default_home() -> Path:
    """Where folders and peers' environments are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nnzoo-benchmarks"


def _write(size: Size, path: Path, device: str, dtype: torch.dtype) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(size.family, bos_token_id=None, eos_token_id=None, **_settings(size))
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(path)
    _write_tokenizer(path)


def _settings(size: Size) -> dict[str, Any]:
    shared = {
        "vocab_size": size.d_vocab,
        "hidden_size": size.d_model,
        "num_hidden_layers": size.n_layers,
        "num_attention_heads": size.n_heads,
        "max_position_embeddings": size.n_ctx,
    }
    if size.family == "gpt2":
        return shared | {"n_inner": size.d_mlp}
    return shared | {"intermediate_size": size.d_mlp, "num_key_value_heads": size.n_kv_heads or size.n_heads}


def _write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0", "pad_token": "w0"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    words.save(str(path / "tokenizer.json"))
