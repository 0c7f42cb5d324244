"""`nnzoo verify` agrees with transformers where nnzoo does, and says where it does not."""

import json
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from families import BASE, PLAIN, folder, ids
from layout import ROOT
from nnzoo import weights
from nnzoo.cli import main
from nnzoo.debugging.places import places_of, relative


def verified(capsys, *arguments: str) -> tuple[int, str]:
    """Exit status and output, with the terminal's line breaks undone."""
    status = main(["verify", *arguments])
    return status, " ".join(capsys.readouterr().out.split())


@pytest.fixture
def broken(monkeypatch):
    """Let `verify` load our model with something changed in it."""

    def break_it(change) -> None:
        def load(*args, **kwargs):
            model = weights.load(*args, **kwargs)
            change(model)
            return model

        monkeypatch.setattr("nnzoo.cli.verify.load", load)

    return break_it


@ids(PLAIN)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_sound_model_passes(family, setting, dtype, capsys):
    status, out = verified(capsys, str(folder(family, setting)), "--dtype", dtype)
    assert status == 0, out
    assert "OK: " in out and "The one nearest to its limit is " in out
    assert "all 20 tokens are the same" in out


@pytest.mark.parametrize("name", ["nnzoo/tiny-gpt2", "nnzoo/tiny-llama", "nnzoo/tiny-mistral"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_trained_model_passes_in_half_precision(name, dtype, capsys):
    status, out = verified(capsys, name, "--dtype", dtype)
    assert status == 0, out
    assert f", {dtype} on cpu" in out


@ids(PLAIN)
def test_every_place_that_transformers_computes_is_compared(family, setting, capsys):
    _, out = verified(capsys, str(folder(family, setting)))
    n_layers = 3
    idle = 2 * n_layers if family == "gpt2" else 0  # attn_dropout's input and output
    assert f"OK: {len(places_of(weights.load(folder(family, setting)))) - idle} values" in out


BREAKAGES = {
    "mlp": (("gpt2", "default"), "blocks.1.mlp.up.bias", "transformer.h.1.mlp.c_fc.output"),
    "norm": (("gpt2", "default"), "blocks.2.ln1.weight", "transformer.h.2.ln_1.output"),
    "query": (("llama", "default"), "blocks.2.attn.q.weight", "model.layers.2.self_attn.q_proj.output"),
    "final_norm": (("mistral", "window=7"), "ln_final.weight", "model.norm.output"),
    "attention": (("gpt2", "default"), "blocks.0.attn.out.bias", "transformer.h.0.attn.c_proj.output"),
    "head": (("llama", "default"), "unembed.weight", "lm_head.output"),
    "embedding": (("mistral", "window=7"), "embed.weight", "model.embed_tokens.output"),
}


@pytest.mark.parametrize(("checkpoint", "parameter", "place"), BREAKAGES.values(), ids=BREAKAGES)
def test_the_first_place_that_a_broken_weight_changes_is_named(checkpoint, parameter, place, broken, capsys):
    broken(lambda model: nn.init.uniform_(model.get_parameter(parameter), -1, 1))
    status, out = verified(capsys, str(folder(*checkpoint)))
    assert status == 1
    assert re.search(r"they part at (\S+) ", out)[1] == place


def test_a_pattern_that_is_off_is_found(broken, capsys):
    broken(lambda model: model.add_hook("blocks.1.attn.hook_pattern", lambda pattern, hook: pattern.roll(1, dims=1)))
    status, out = verified(capsys, str(folder("gpt2", "default")))
    assert status == 1
    assert "part at transformer.h.1.attn.output[1] (blocks.1.attn.hook_pattern)" in out


def test_the_tolerance_decides(broken, capsys):
    broken(lambda model: model.ln_final.weight.data.mul_(1.01))
    assert verified(capsys, str(folder("llama", "default")), "--tolerance", "0.1")[0] == 0
    assert verified(capsys, str(folder("llama", "default")), "--tolerance", "0.001")[0] == 1


def test_another_continuation_fails(monkeypatch, capsys):
    def wrong(model, tokens, *, max_new_tokens):
        return torch.cat([tokens, torch.zeros(1, max_new_tokens, dtype=torch.long)], dim=1)

    monkeypatch.setattr("nnzoo.cli.comparison.generate", wrong)
    status, out = verified(capsys, str(folder("llama", "default")))
    assert status == 1
    assert "FAILED: the values agree, but generation does not" in out


def test_a_prompt_needs_a_tokenizer(capsys):
    assert main(["verify", str(folder("gpt2", "default")), "--prompt", "hello"]) == 2
    assert "has no tokenizer" in capsys.readouterr().err


def test_a_prompt_is_what_is_compared(capsys):
    status, out = verified(capsys, "nnzoo/tiny-gpt2", "--prompt", "The capital of France is")
    assert status == 0
    assert ", 5 tokens " in out


def test_a_prompt_that_fills_the_context_is_compared_without_generation(capsys):
    n_ctx = json.loads((weights.resolve("nnzoo/tiny-gpt2") / "config.json").read_text())["n_positions"]
    status, out = verified(capsys, "nnzoo/tiny-gpt2", "--prompt", " and" * n_ctx)
    assert status == 0
    assert f", {n_ctx} tokens " in out
    assert "No generation" in out


@pytest.mark.parametrize(("text", "n_tokens"), [("", 0), (" and" * 2001, 2001)], ids=["empty", "too_long"])
def test_a_prompt_of_no_length_that_the_model_takes_is_refused(text, n_tokens, capsys):
    assert main(["verify", "nnzoo/tiny-gpt2", "--prompt", text]) == 2
    assert f"--prompt has {n_tokens} tokens" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cuda:99", "toaster"])
def test_a_device_that_is_not_there_is_refused(device, capsys):
    assert main(["verify", str(folder("gpt2", "default")), "--device", device]) == 2
    assert f"device '{device}' cannot be used: this machine has cpu" in capsys.readouterr().err


def test_verify_in_a_process_of_its_own():
    command = [sys.executable, "-m", "nnzoo", "verify", str(folder("mistral", "window=3"))]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert f"Mistral with {BASE['mistral']['num_hidden_layers']} blocks, float64 on cpu" in " ".join(run.stdout.split())
    assert not run.stderr


def test_relative_difference_sees_what_cannot_be_compared():
    value = torch.tensor([1.0, float("nan")])
    assert relative(value, value.nan_to_num()) == float("inf")
    assert relative(value, value[:1]) == float("inf")
    assert relative(torch.zeros(2), torch.zeros(2)) == 0
