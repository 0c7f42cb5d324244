"""Tokenizers are AutoTokenizer's, whichever way they were loaded, and text keeps nobody waiting."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from nnzoo.weights import load_tokenizer, resolve

pytestmark = pytest.mark.local("tokenizers are loaded here")

TEXTS = ["The capital of France is Paris.", "  two  spaces\n\ttabs", "naïve 東京 🦙", "", "x<|endoftext|>y"]
SETTINGS: list[dict[str, Any] | None] = [
    {},
    {"add_bos_token": True, "padding_side": "left", "model_max_length": 77},
    {"additional_special_tokens": ["<a>", "<b>"], "chat_template": "{{ messages[0].content }}"},
    {"tokenizer_class": "LlamaTokenizerFast"},
    {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True},
    {"tokenizer_class": None},
    None,  # no tokenizer_config.json
]


def described(tokenizer: Any) -> tuple:
    """All that a tokenizer is."""
    fields = {name: value for name, value in vars(tokenizer).items() if name != "_tokenizer"}
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    return type(tokenizer), fields, backend, [tokenizer(text).input_ids for text in TEXTS], tokenizer.get_vocab()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_a_tokenizer_is_what_auto_tokenizer_gives(family: str, settings: dict[str, Any] | None, tmp_path: Path):
    shutil.copytree(resolve(f"nnzoo/tiny-{family}"), tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer_config.json"
    said = json.loads(file.read_text())
    file.unlink()
    if settings is not None:
        file.write_text(json.dumps({name: value for name, value in {**said, **settings}.items() if value is not None}))
    assert described(load_tokenizer(tmp_path)) == described(AutoTokenizer.from_pretrained(tmp_path))


@pytest.mark.parametrize("name", ["nnzoo/tiny-gpt2", "nnzoo/tiny-llama", "nnzoo/tiny-mistral"])
def test_the_first_text_does_not_wait_for_pytorchs_compiler(name: str):
    code = f"""if True:
        import sys
        from nnzoo import LanguageModel
        model = LanguageModel({name!r})
        with model.trace("The capital of France is"):
            model.output.save()
        print(*sys.modules)
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch._dynamo", "sympy"} & set(run.stdout.split())


def test_the_folder_of_another_family_is_left_to_auto_tokenizer(tmp_path: Path):
    shutil.copytree(resolve("nnzoo/tiny-llama"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    assert described(load_tokenizer(tmp_path)) == described(AutoTokenizer.from_pretrained(tmp_path))
