"""A prompt in a padded batch is the prompt alone: at every hook point, whatever its neighbours and its padding."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from families import PLAIN, error, ids, ours, prompt, theirs
from nnzoo.architectures.attention import ContextLengthError
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.hooks import HookPoint

N_POS = 20
# by the number of padded places on the left and on the right, a pair for each row
BATCHES = {
    "left": [(9, 0), (1, 0), (4, 0)],
    "right": [(0, 9), (0, 0), (0, 4)],
    "both": [(3, 5), (0, 0), (6, 1)],
    "one_token": [(N_POS - 1, 0), (0, 0), (0, N_POS - 1)],
}
PADDED = pytest.mark.parametrize("batch", BATCHES)
# windows shorter and longer than a prompt; positions by table and by rotation; grouped queries and not
MODELS = [
    *PLAIN,
    ("gpt2", "odd_sizes"),
    ("llama", "n_kv_heads=4"),
    ("llama", "attention_bias"),
    ("llama", "rope=dynamic"),
    ("llama", "rope=yarn"),
    ("mistral", "window=1"),
    ("mistral", "window=null"),
]
SOLO = {torch.float64: 1e-12, torch.float32: 1e-5}
EVERYWHERE = [pytest.param(*m, torch.float64, id=f"{'-'.join(m)}-float64") for m in MODELS]
EVERYWHERE += [pytest.param(*m, torch.float32, id=f"{'-'.join(m)}-float32") for m in PLAIN]


def mask_of(pads: list[tuple[int, int]], n_pos: int = N_POS) -> Tensor:
    """True at tokens, False at padding."""
    mask = torch.zeros(len(pads), n_pos, dtype=torch.bool)
    for row, (left, right) in zip(mask, pads, strict=True):
        row[left : n_pos - right] = True
    return mask


def positions_of(mask: Tensor) -> Tensor:
    return (mask.cumsum(dim=-1) - 1).clamp(min=0)


def everything(model: HookedModel, tokens: Tensor, **kwargs: Tensor) -> Mapping[str, Tensor]:
    return model.run_with_cache(tokens, names_filter=lambda name: True, **kwargs)[1]


def own(value: Tensor, point: HookPoint, row: int, mask: Tensor) -> Tensor:
    """One prompt's part of a value: its row of the batch, and of every axis of tokens those that are no padding."""
    value, kept = value[row], mask[row].nonzero()[:, 0]
    for axis, symbol in enumerate(point.axes.split()[1:]):
        if symbol in ("pos", "key_pos", "query", "key"):
            value = value.index_select(axis, kept)
    return value


@PADDED
@ids(MODELS)
def test_logits_of_a_padded_batch_are_those_of_transformers(family, setting, batch):
    mask, model = mask_of(BATCHES[batch]), ours(family, setting)
    tokens = prompt(3, N_POS)
    a = model(tokens, attention_mask=mask)
    with torch.no_grad():
        b = theirs(family, setting)(tokens, attention_mask=mask.long(), position_ids=positions_of(mask)).logits
    assert a.isfinite().all()
    assert error(a[mask], b[mask]) < 1e-10


@PADDED
@pytest.mark.parametrize(("family", "setting", "dtype"), EVERYWHERE)
def test_a_padded_prompt_is_the_prompt_alone_at_every_hook_point(family, setting, batch, dtype):
    mask, model, tokens = mask_of(BATCHES[batch]), ours(family, setting, dtype), prompt(3, N_POS)
    together = everything(model, tokens, attention_mask=mask)
    for row in range(len(tokens)):
        alone = everything(model, tokens[row : row + 1, mask[row]])
        for name, value in alone.items():
            mine = own(together[name], model.hook_points[name], row, mask)
            assert error(mine, value[0]) < SOLO[dtype], (row, name)


@PADDED
@ids(MODELS)
def test_a_padded_prompt_is_the_prompt_alone_with_nobody_listening(family, setting, batch):
    mask, model, tokens = mask_of(BATCHES[batch]), ours(family, setting), prompt(3, N_POS)
    together = model(tokens, attention_mask=mask)
    for row in range(len(tokens)):
        assert error(together[row, mask[row]], model(tokens[row, mask[row]])[0]) < 1e-12


def test_dynamic_rope_stretches_each_prompt_by_its_own_length():
    # transformers stretches a whole batch by its longest prompt, so that a short one has other logits than alone
    mask, model, tokens = mask_of([(50, 0), (0, 0)], n_pos=100), ours("llama", "rope=dynamic"), prompt(2, 100)
    together = model(tokens, attention_mask=mask)
    for row in range(2):
        assert error(together[row, mask[row]], model(tokens[row, mask[row]])[0]) < 1e-12


@ids(MODELS)
def test_what_stands_at_padding_changes_nothing(family, setting):
    mask, model, tokens = mask_of(BATCHES["both"]), ours(family, setting), prompt(3, N_POS)
    other = torch.where(mask, tokens, (tokens + 1) % model.config.d_vocab)
    a, b = (model(t, attention_mask=mask) for t in (tokens, other))
    assert torch.equal(a[mask], b[mask])


@ids(MODELS)
def test_a_mask_without_padding_is_no_mask(family, setting):
    model, tokens = ours(family, setting), prompt(3, N_POS)
    assert torch.equal(model(tokens, attention_mask=torch.ones_like(tokens)), model(tokens))


@pytest.mark.parametrize("batch", ["both", "one_token"])
@ids(MODELS)
def test_nothing_is_nan_under_padding(family, setting, batch):
    mask, model = mask_of(BATCHES[batch]), ours(family, setting)
    for name, value in everything(model, prompt(3, N_POS), attention_mask=mask).items():
        assert not value.isnan().any(), name


@PADDED
@ids(MODELS)
def test_rows_of_a_pattern_sum_to_one_and_are_zero_where_nothing_is_seen(family, setting, batch):
    mask, model = mask_of(BATCHES[batch]), ours(family, setting)
    cache = everything(model, prompt(3, N_POS), attention_mask=mask)
    pattern, scores = cache["blocks.1.attn.hook_pattern"], cache["blocks.1.attn.hook_attn_scores"]
    masked, real = scores.isneginf(), mask[:, None, :, None].expand_as(scores)
    assert torch.equal(masked[real], ~seen_by(mask, model.window)[:, None].expand_as(scores)[real])
    assert (scores[~masked].isfinite()).all()
    assert (pattern[masked] == 0).all()
    sums = (~masked).any(dim=-1).to(pattern.dtype)
    torch.testing.assert_close(pattern.sum(dim=-1), sums, rtol=0, atol=1e-12)


def seen_by(mask: Tensor, window: int | None) -> Tensor:
    """Which keys each query may look at, spelled out one by one: [batch query key]."""
    n_pos = mask.shape[1]
    visible = torch.zeros(len(mask), n_pos, n_pos, dtype=torch.bool)
    for query in range(n_pos):
        for key in range(query + 1):
            visible[:, query, key] = mask[:, key] & (window is None or query - key < window)
    return visible


@ids(PLAIN)
def test_a_padded_row_may_be_longer_than_the_context_if_its_tokens_are_not(family, setting):
    model, tokens = ours(family, setting), prompt(2, 80)
    mask = mask_of([(30, 0), (16, 0)], n_pos=80)
    together = model(tokens, attention_mask=mask)
    for row in range(2):
        assert error(together[row, mask[row]], model(tokens[row, mask[row]])[0]) < 1e-12
    with pytest.raises(ContextLengthError, match="65 tokens, but the model has 64 positions"):
        model(tokens, attention_mask=mask_of([(30, 0), (15, 0)], n_pos=80))


@ids(PLAIN)
def test_the_loss_leaves_padding_out(family, setting):
    mask, model, tokens = mask_of([(3, 5)]), ours(family, setting), prompt(1, N_POS)
    padded = model(tokens, attention_mask=mask, return_type="loss")
    alone = model(tokens[:, mask[0]], return_type="loss")
    torch.testing.assert_close(padded, alone, rtol=1e-12, atol=0)
