"""A text read in parts, with a KV cache, gives what it gives when read at once."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from families import N_CTX, PLAIN, error, ids, ours, prompt, theirs
from nnzoo.architectures.attention import ContextLengthError
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.kv_cache import KVCache

N_POS = 30
MODELS = [
    *PLAIN,
    ("llama", "n_kv_heads=4"),
    ("llama", "rope=yarn"),
    ("mistral", "window=1"),
    ("mistral", "window=3"),
    ("mistral", "window=null"),
]
LONG = [
    (family, "n_ctx=256") for family in ("gpt2", "llama", "mistral")
]  # past the 64 tokens that a buffer starts with
PATHS = pytest.mark.parametrize("path", ["fused", "explicit"])
PARTS = st.lists(st.integers(1, N_POS), min_size=1, max_size=N_POS)  # the last part takes what is left


def split(tensor: Tensor, parts: list[int]) -> list[Tensor]:
    """Pieces of [batch pos] of these lengths, and one with the rest.

    >>> [piece.shape[1] for piece in split(torch.zeros(2, 10), [3, 4, 9])]
    [3, 4, 3]
    """
    pieces, start = [], 0
    for length in [*parts, tensor.shape[1]]:
        if start < tensor.shape[1]:
            pieces.append(tensor[:, start : start + length])
        start += length
    return pieces


def read_in_parts(
    model: HookedModel,
    tokens: Tensor,
    parts: list[int],
    mask: Tensor | None = None,
    cache: KVCache | None = None,
    path: str = "fused",
) -> Tensor:
    """The logits of all parts, one after the other."""
    cache = cache or model.new_cache()
    masks = [None] * len(tokens[0]) if mask is None else split(mask, parts)
    listening = [("blocks.*.attn.hook_pattern", lambda value, hook: None)] if path == "explicit" else []
    with model.hooks(listening):
        logits = [
            model(piece, attention_mask=part, cache=cache)
            for piece, part in zip(split(tokens, parts), masks, strict=False)
        ]
    return torch.cat(logits, dim=1)


@PATHS
@ids(MODELS)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=PARTS)
def test_a_text_in_parts_is_the_text_at_once(family, setting, path, parts):
    model, tokens = ours(family, setting), prompt(2, N_POS)
    with torch.no_grad():
        assert error(read_in_parts(model, tokens, parts, path=path), model(tokens)) < 1e-12


@PATHS
@ids(MODELS)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=PARTS, left=st.integers(1, N_POS - 1))
def test_a_padded_text_in_parts_is_the_text_at_once(family, setting, path, parts, left):
    model, tokens = ours(family, setting), prompt(2, N_POS)
    mask = torch.ones(2, N_POS, dtype=torch.bool)
    mask[0, :left] = False
    with torch.no_grad():
        whole = model(tokens, attention_mask=mask)
        assert error(read_in_parts(model, tokens, parts, mask, path=path)[mask], whole[mask]) < 1e-12


@ids(MODELS)
def test_a_mask_is_needed_only_with_the_padded_part(family, setting):
    model, tokens = ours(family, setting), prompt(2, N_POS)
    mask = torch.ones(2, N_POS, dtype=torch.bool)
    mask[0, :5] = False
    cache = model.new_cache()
    first = model(tokens[:, :8], attention_mask=mask[:, :8], cache=cache)
    rest = [model(tokens[:, i : i + 1], cache=cache) for i in range(8, N_POS)]
    assert error(torch.cat([first, *rest], dim=1)[mask], model(tokens, attention_mask=mask)[mask]) < 1e-12


@ids(MODELS)
def test_padding_may_come_after_an_unpadded_part(family, setting):
    model, tokens = ours(family, setting), prompt(2, 12)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 9:] = False
    cache = model.new_cache()
    first = model(tokens[:, :6], cache=cache)
    second = model(tokens[:, 6:], attention_mask=mask[:, 6:], cache=cache)
    assert error(torch.cat([first, second], dim=1)[mask], model(tokens, attention_mask=mask)[mask]) < 1e-12


@ids(PLAIN)
def test_steps_are_those_of_transformers(family, setting):
    a, b, tokens = ours(family, setting), theirs(family, setting), prompt(1, N_POS)
    cache, past = a.new_cache(), None
    for start, end in [(0, 12), *((i, i + 1) for i in range(12, N_POS))]:
        with torch.no_grad():
            out = b(tokens[:, start:end], past_key_values=past, use_cache=True)
        past = out.past_key_values
        assert error(a(tokens[:, start:end], cache=cache), out.logits) < 1e-10


def test_dynamic_rope_grows_with_the_text_as_in_transformers():
    a, b, tokens = ours("llama", "rope=dynamic"), theirs("llama", "rope=dynamic"), prompt(1, 90)
    cache, past = a.new_cache(), None
    for start, end in [(0, 60), *((i, i + 1) for i in range(60, 90))]:
        with torch.no_grad():
            out = b(tokens[:, start:end], past_key_values=past, use_cache=True)
        past = out.past_key_values
        assert error(a(tokens[:, start:end], cache=cache), out.logits) < 1e-10


@ids(PLAIN)
def test_gradients_flow_through_the_cache(family, setting):
    model, tokens = ours(family, setting), prompt(2, 12)
    whole = gradient_of(model, model(tokens))
    parts = gradient_of(model, read_in_parts(model, tokens, [5, 1, 3, 1]))
    assert error(parts, whole) < (1e-10 if family == "gpt2" else 1e-6)


def gradient_of(model: HookedModel, logits: Tensor) -> Tensor:
    model.zero_grad()
    logits.pow(2).sum().backward()
    return model.W_E.grad.clone()


@ids(PLAIN)
def test_a_cache_may_be_filled_without_gradients_and_read_with_them(family, setting):
    model, tokens = ours(family, setting), prompt(2, 12)
    cache = model.new_cache()
    with torch.no_grad():
        first = read_in_parts(model, tokens[:, :7], [4], cache=cache)
    rest = read_in_parts(model, tokens[:, 7:], [1, 2], cache=cache)
    rest.sum().backward()
    assert error(torch.cat([first, rest], dim=1), model(tokens)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@ids(PLAIN)
def test_the_cache_holds_the_dtype_of_the_model(family, setting, dtype):
    model, tokens = ours(family, setting, dtype), prompt(2, 12)
    parts, whole = read_in_parts(model, tokens, [5, 1, 1]), model(tokens)
    assert parts.dtype == dtype
    assert error(parts, whole) < 0.2


def keys_after(model: HookedModel, n_pos: int, first: int) -> Tensor:
    """The first block's keys, as its queries see them, after `first` tokens at once and the rest one by one."""
    kept: list[Tensor] = []
    tokens, cache = prompt(1, n_pos), model.new_cache()
    model(tokens[:, :first], cache=cache)
    handle = model.hook_points["blocks.0.attn.hook_rot_k"].add_reader(lambda value, hook: kept.append(value))
    try:
        for i in range(first, n_pos):
            model(tokens[:, i : i + 1], cache=cache)
    finally:
        handle.remove()
    return kept[-1]


def test_keys_outside_the_window_leave_the_cache():
    model = ours("mistral", "n_ctx=256")
    with torch.no_grad():
        short, long = keys_after(model, 50, first=20), keys_after(model, 250, first=20)
    assert long.shape[1] == model.window == 3
    # what lies behind the view is no larger after 250 tokens than after 50
    assert long.untyped_storage().nbytes() == short.untyped_storage().nbytes()


@pytest.mark.parametrize(
    ("parts", "padded"),
    [([1] * 150, (0, 0)), ([70, 1, 1, 70, 1], (0, 90)), ([1] * 150, (40, 60)), ([30] * 5, (75, 80))],
    ids=["steps", "left_padding", "padding_between", "chunks"],
)
@ids(LONG)
def test_a_text_that_outgrows_the_buffers_reads_on(family, setting, parts, padded):
    model, tokens = ours(family, setting), prompt(2, 150)
    mask = torch.ones(2, 150, dtype=torch.bool)
    mask[1, slice(*padded)] = False
    with torch.no_grad():
        whole = model(tokens, attention_mask=mask)
        assert error(read_in_parts(model, tokens, parts, mask)[mask], whole[mask]) < 1e-12


@ids(PLAIN)
def test_a_cache_left_by_an_interrupted_pass_is_refused(family, setting):
    model, cache = ours(family, setting), ours(family, setting).new_cache()

    def interrupt(value, hook):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), model.hooks([("blocks.1.hook_resid_pre", interrupt)]):
        model(prompt(1, 5), cache=cache)
    with pytest.raises(RuntimeError, match=r"keys of \[5, 0, 0\] tokens.*Start again with a new cache"):
        model(prompt(1, 1), cache=cache)


@ids(PLAIN)
def test_a_pass_that_stopped_before_the_first_block_leaves_the_cache_usable(family, setting):
    model, tokens = ours(family, setting), prompt(2, 9)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, :2] = False
    cache = model.new_cache()
    model(tokens[:, :4], attention_mask=mask[:, :4], cache=cache)
    model(tokens[:, 4:6], cache=cache, stop_at_layer=0)
    rest = model(tokens[:, 4:], cache=cache)
    assert error(rest, model(tokens, attention_mask=mask)[:, 4:]) < 1e-12


@pytest.mark.parametrize("padded", [False, True])
@ids(PLAIN)
def test_another_batch_size_is_refused(family, setting, padded):
    model = ours(family, setting)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[0, 0] = not padded
    cache = model.new_cache()
    model(prompt(2, 5), attention_mask=mask, cache=cache)
    with pytest.raises(ValueError, match="filled with a batch of 2, and now gets one of 3"):
        model(prompt(3, 1), cache=cache)


@ids(PLAIN)
def test_positions_up_to_the_context_length_are_allowed_and_no_more(family, setting):
    model, tokens = ours(family, setting), prompt(1, N_CTX + 1)
    assert model(tokens[:, :N_CTX]).shape[1] == N_CTX
    message = "65 tokens, but the model has 64 positions. Shorten the prompt, or generate fewer tokens"
    with pytest.raises(ContextLengthError, match=message):
        model(tokens)
    cache = model.new_cache()
    model(tokens[:, : N_CTX - 1], cache=cache)
    model(tokens[:, N_CTX - 1 : N_CTX], cache=cache)
    with pytest.raises(ContextLengthError, match=message):
        model(tokens[:, N_CTX:], cache=cache)


@ids(PLAIN)
def test_a_refused_part_leaves_the_cache_as_it_was(family, setting):
    model, tokens = ours(family, setting), prompt(1, N_CTX)
    cache = model.new_cache()
    model(tokens[:, :60], cache=cache)
    with pytest.raises(ContextLengthError):
        model(prompt(1, 5), cache=cache)
    assert error(model(tokens[:, 60:], cache=cache), model(tokens)[:, 60:]) < 1e-12


@ids(PLAIN)
def test_a_padded_text_in_parts_may_be_longer_than_the_context(family, setting):
    model, tokens = ours(family, setting), prompt(2, 75)
    mask = torch.ones(2, 75, dtype=torch.bool)
    mask[0, :30], mask[1, :11] = False, False
    parts = read_in_parts(model, tokens, [40, 30, 1, 1], mask)
    assert error(parts[mask], model(tokens, attention_mask=mask)[mask]) < 1e-12


@ids(MODELS)
def test_a_right_padded_prompt_reads_on_as_it_would_alone(family, setting):
    model, tokens = ours(family, setting), prompt(2, 16)
    mask = torch.ones(2, 16, dtype=torch.bool)
    mask[1, 6:12] = False
    cache = model.new_cache()
    model(tokens[:, :12], attention_mask=mask[:, :12], cache=cache)
    rest = model(tokens[:, 12:], cache=cache)
    for row in range(2):
        alone = model(tokens[row, mask[row]])[0, -4:]
        assert error(rest[row], alone) < 1e-12
