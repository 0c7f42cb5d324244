"""What a model takes: which inputs it refuses and how, and that it runs on meta and under torch.compile."""

import subprocess
import sys

import pytest
import torch

from families import D_VOCAB, PLAIN, folder, ids, ours, prompt

BAD_TOKENS = {
    "too_large": (torch.tensor([[3, D_VOCAB]]), "token ids run from 0 to 96, but got 3 to 97"),
    "negative": (torch.tensor([[3, -1]]), "token ids run from 0 to 96, but got -1 to 3"),
    "empty_prompt": (torch.zeros(1, 0, dtype=torch.long), r"the prompt is empty: tokens are \[1, 0\]"),
    "empty_row": (torch.zeros(0, dtype=torch.long), r"the prompt is empty: tokens are \[1, 0\]"),
    "no_prompt": (torch.zeros(0, 4, dtype=torch.long), r"the prompt is empty: tokens are \[0, 4\]"),
    "float": (torch.zeros(1, 4), r"tokens are integers \[batch pos\] or \[pos\], not torch.float32 \[1, 4\]"),
    "bool": (torch.zeros(1, 4, dtype=torch.bool), r"tokens are integers .* not torch.bool \[1, 4\]"),
    "three_axes": (torch.zeros(1, 4, 2, dtype=torch.long), r"tokens are integers .* not torch.int64 \[1, 4, 2\]"),
}


@pytest.mark.parametrize(("tokens", "message"), BAD_TOKENS.values(), ids=BAD_TOKENS)
@ids(PLAIN)
def test_what_is_no_prompt_is_refused(family, setting, tokens, message):
    with pytest.raises(ValueError, match=message):
        ours(family, setting)(tokens)


@ids(PLAIN)
def test_a_mask_of_another_shape_is_refused(family, setting):
    with pytest.raises(ValueError, match=r"attention_mask is \[2, 5\], the tokens \[2, 6\]"):
        ours(family, setting)(prompt(2, 6), attention_mask=torch.ones(2, 5, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.long, torch.bool], ids=str)
@ids(PLAIN)
def test_one_prompt_needs_no_batch_axis(family, setting, dtype):
    model, tokens = ours(family, setting), prompt(8)
    mask = torch.ones(8, dtype=dtype)
    mask[:3] = 0
    assert torch.equal(model(tokens), model(tokens[None]))
    assert torch.equal(model(tokens, attention_mask=mask), model(tokens[None], attention_mask=mask[None]))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16], ids=str)
@ids(PLAIN)
def test_ids_may_be_any_integers(family, setting, dtype):
    model, tokens = ours(family, setting), prompt(2, 8)
    assert torch.equal(model(tokens.to(dtype)), model(tokens))
    assert torch.equal(model(tokens.to(dtype), return_type="loss"), model(tokens, return_type="loss"))


@ids([*PLAIN, ("llama", "rope=dynamic"), ("llama", "rope=yarn"), ("gpt2", "untied")])
def test_a_model_built_on_meta_gives_shapes(family, setting):
    model = ours(family, setting)
    with torch.device("meta"):
        empty = type(model)(model.config)
    tokens = torch.zeros(2, 9, dtype=torch.long, device="meta")
    logits, cache = empty.run_with_cache(tokens, names_filter=lambda name: True)
    assert logits.is_meta
    assert logits.shape == (2, 9, D_VOCAB)
    real = model.run_with_cache(prompt(2, 9), names_filter=lambda name: True)[1]
    assert {name: value.shape for name, value in cache.items()} == {n: v.shape for n, v in real.items()}
    assert all(value.is_meta for value in cache.values())


@ids(PLAIN)
def test_a_model_built_on_meta_becomes_real_with_its_weights(family, setting):
    model = ours(family, setting)
    with torch.device("meta"):
        empty = type(model)(model.config)
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty(prompt(2, 9)), model(prompt(2, 9)))


COMPILED = """
import sys, torch
from nnzoo.weights import load
for folder in sys.argv[1:]:
    model = load(folder)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        for length in (9, 12):
            tokens = torch.arange(2 * length).view(2, length)
            torch.testing.assert_close(compiled(tokens), model(tokens))
"""


def test_models_with_nobody_listening_compile_to_one_graph():
    # in a process of its own: the suite's check of shapes is no part of a model, and cannot be traced through
    folders = [folder("gpt2", "default"), folder("mistral", "window=7")]  # the second runs all that LLaMA has
    run = subprocess.run([sys.executable, "-c", COMPILED, *folders], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
