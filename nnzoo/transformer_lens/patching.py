"""Activation patching by TransformerLens's names, by the batched sweeps of nnzoo.analysis wherever they do the same.

The standard setters with axes by name run batched, each from the block that it changes on; a setter of your own, rows
of indices of your own, or hooks on the model, one run after the other as in TransformerLens. The numbers are the same.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from nnzoo.analysis.drawing import needed
from nnzoo.analysis.sites import sites_of
from nnzoo.analysis.subject import Subject, Tokens
from nnzoo.analysis.sweep import Base, progress
from nnzoo.architectures.names import get_act_name

Setter = Callable[[Tensor, Sequence[int], Tensor], Tensor]
Metric = Callable[[Tensor], Tensor]


# --- setters: (corrupted value, index, clean value) -> patched value -----------------------------------------------


def layer_pos_patch_setter(corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor) -> Tensor:
    """[layer, pos], of values [batch pos ...]."""
    return _put(corrupted_activation, clean_activation, _of(index, 2))


def layer_pos_head_vector_patch_setter(
    corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor
) -> Tensor:
    """[layer, pos, head], of values [batch pos head d_head]."""
    return _put(corrupted_activation, clean_activation, _of(index, 3))


def layer_head_vector_patch_setter(
    corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor
) -> Tensor:
    """[layer, head], of values [batch pos head d_head]."""
    return _put(corrupted_activation, clean_activation, (slice(None), *_of(index, 2)))


def layer_head_pattern_patch_setter(
    corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor
) -> Tensor:
    """[layer, head], of patterns [batch head query key]."""
    return _put(corrupted_activation, clean_activation, _of(index, 2))


def layer_head_pos_pattern_patch_setter(
    corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor
) -> Tensor:
    """[layer, head, query], of patterns [batch head query key]."""
    return _put(corrupted_activation, clean_activation, _of(index, 3))


def layer_head_dest_src_pos_pattern_patch_setter(
    corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor
) -> Tensor:
    """[layer, head, query, key], of patterns [batch head query key]."""
    return _put(corrupted_activation, clean_activation, _of(index, 4))


def _of(index: Sequence[int], length: int) -> tuple[int, ...]:
    if len(index) != length:
        raise AssertionError(f"this setter takes {length} indices, the layer first, not {list(index)}")
    return tuple(index[1:])


def _put(corrupted: Tensor, clean: Tensor, place: tuple) -> Tensor:
    where = (slice(None), *place)
    corrupted[where] = clean[where]
    return corrupted


# what nnzoo.analysis goes through, for a setter with the axes that it is meant for
SWEEPS: dict[tuple[Setter, tuple[str, ...]], str] = {
    (layer_pos_patch_setter, ("layer", "pos")): "pos",
    (layer_pos_head_vector_patch_setter, ("layer", "pos", "head")): "pos head",
    (layer_head_vector_patch_setter, ("layer", "head")): "head",
    (layer_head_pattern_patch_setter, ("layer", "head")): "head",
    (layer_head_pos_pattern_patch_setter, ("layer", "head", "dest_pos")): "head query",
    (layer_head_dest_src_pos_pattern_patch_setter, ("layer", "head", "dest_pos", "src_pos")): "head query key",
}


# --- the sweep ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def generic_activation_patch(
    model: Any,
    corrupted_tokens: Int[Tensor, "batch pos"],
    clean_cache: Any,
    patching_metric: Metric,
    patch_setter: Setter,
    activation_name: str,
    index_axis_names: Sequence[str] | None = None,
    index_df: Any = None,
    return_index_df: bool = False,
) -> Any:
    """The metric of the run on `corrupted_tokens` after each patch, a tensor with an axis for each of the indices.

    `patch_setter(corrupted value, index, clean value)` puts what the cache of the clean run has into the value at
    `activation_name` of the layer `index[0]`. Indices are all of `index_axis_names` ("layer", "pos", "head",
    "dest_pos", "src_pos"), or the rows of a data frame; then the result has one axis. `patching_metric` makes a number
    of logits.

    >>> from nnzoo.transformer_lens import HookedTransformer, patching
    >>> model = HookedTransformer.from_pretrained("nnzoo/tiny-gpt2")
    >>> clean, corrupted = model.to_tokens(["The capital of France is", "The capital of Italy is"])[:, None]
    >>> _, cache = model.run_with_cache(clean)
    >>> paris = model.to_single_token(" Paris")
    >>> patching.get_act_patch_resid_pre(model, corrupted, cache, lambda logits: logits[0, -1, paris]).shape
    torch.Size([4, 6])
    """
    if index_df is not None and index_axis_names is not None:
        raise AssertionError("indices are named by index_axis_names or listed in index_df, not both")
    if index_df is None:
        axes = tuple(index_axis_names or ())
        ranges = [_sizes(model, corrupted_tokens, activation_name)[axis] for axis in axes]
        rows = list(product(*map(range, ranges)))
    else:
        rows, ranges = [tuple(map(int, row)) for row in index_df.itertuples(index=False)], [len(index_df)]
    by = None if index_df is not None else _sweep_of(model, clean_cache, patch_setter, axes, activation_name)
    if by is not None:
        scores = _swept(model, corrupted_tokens, clean_cache, patching_metric, activation_name, by)
    else:
        scores = _one_by_one(model, corrupted_tokens, clean_cache, patching_metric, patch_setter, activation_name, rows)
    scores = scores.view(ranges)
    if not return_index_df:
        return scores
    return scores, index_df if index_df is not None else make_df_from_ranges(ranges, axes)


def make_df_from_ranges(column_max_ranges: Sequence[int], column_names: Sequence[str]) -> Any:
    """A pandas data frame with a row for each index."""
    rows = list(product(*map(range, column_max_ranges)))
    return needed("pandas", "a table of indices").DataFrame(rows, columns=list(column_names))


def _sizes(model: Any, tokens: Tensor, activation_name: str) -> dict[str, int]:
    cfg, pos = model.cfg, tokens.shape[-1]
    grouped = activation_name in ("k", "v") and cfg.n_key_value_heads is not None
    heads = cfg.n_key_value_heads if grouped else cfg.n_heads
    return {"layer": cfg.n_layers, "pos": pos, "src_pos": pos, "dest_pos": pos, "head": heads, "head_index": heads}


def _sweep_of(model: Any, cache: Any, setter: Setter, axes: tuple[str, ...], name: str) -> str | None:
    """What an equal sweep of nnzoo.analysis goes through; None where there is none."""
    by = SWEEPS.get((setter, tuple("head" if axis == "head_index" else axis for axis in axes)))
    points = model.native.hook_points
    point = points.get(get_act_name(name, 0))
    if by is None or point is None or any(one.hooks for one in points.values()):
        return None  # what a hook does may depend on which prompts share a run
    symbols = tuple(symbol.removeprefix("kv_") for symbol in point.axes.split()[1:])
    return by if set(by.split()) <= set(symbols) else None


def _swept(model: Any, tokens: Tensor, cache: Any, metric: Metric, name: str, by: str) -> Tensor:
    subject = Subject(model.native)
    batch = Tokens(*subject.native.tokens_and_mask(*model.tokens_and_mask(tokens, None, None, None)))
    sites = sites_of(subject, batch, name, by)
    run = Base(subject, batch, lambda logits: torch.as_tensor(metric(logits)))
    return run.run(sites.replacements([cache[point] for point in sites.names]), what=f"patching {name}")


def _one_by_one(
    model: Any, tokens: Tensor, cache: Any, metric: Metric, setter: Setter, name: str, rows: list[tuple[int, ...]]
) -> Float[Tensor, "row"]:
    scores = torch.zeros(len(rows), device=tokens.device)
    with progress(len(rows), f"patching {name}") as bar:
        for i, row in enumerate(rows):
            point = get_act_name(name, row[0])

            def patch(value: Tensor, hook: Any, row: tuple[int, ...] = row, clean: Tensor = cache[point]) -> Tensor:
                return setter(value, list(row), clean)

            scores[i] = float(metric(model.run_with_hooks(tokens, fwd_hooks=[(point, patch)])))
            bar.update()
    return scores


def _patch(setter: Setter, name: str, *axes: str) -> Any:
    return partial(
        generic_activation_patch, patch_setter=setter, activation_name=name, index_axis_names=("layer", *axes)
    )


# (model, corrupted_tokens, clean_cache, patching_metric) -> [layer pos]
get_act_patch_resid_pre = _patch(layer_pos_patch_setter, "resid_pre", "pos")
get_act_patch_resid_mid = _patch(layer_pos_patch_setter, "resid_mid", "pos")
get_act_patch_attn_out = _patch(layer_pos_patch_setter, "attn_out", "pos")
get_act_patch_mlp_out = _patch(layer_pos_patch_setter, "mlp_out", "pos")
# -> [layer pos head]
get_act_patch_attn_head_out_by_pos = _patch(layer_pos_head_vector_patch_setter, "z", "pos", "head")
get_act_patch_attn_head_q_by_pos = _patch(layer_pos_head_vector_patch_setter, "q", "pos", "head")
get_act_patch_attn_head_k_by_pos = _patch(layer_pos_head_vector_patch_setter, "k", "pos", "head")
get_act_patch_attn_head_v_by_pos = _patch(layer_pos_head_vector_patch_setter, "v", "pos", "head")
# -> [layer head query], [layer head query key]
get_act_patch_attn_head_pattern_by_pos = _patch(
    layer_head_pos_pattern_patch_setter, "pattern", "head_index", "dest_pos"
)
get_act_patch_attn_head_pattern_dest_src_pos = _patch(
    layer_head_dest_src_pos_pattern_patch_setter, "pattern", "head_index", "dest_pos", "src_pos"
)
# -> [layer head]
get_act_patch_attn_head_out_all_pos = _patch(layer_head_vector_patch_setter, "z", "head")
get_act_patch_attn_head_q_all_pos = _patch(layer_head_vector_patch_setter, "q", "head")
get_act_patch_attn_head_k_all_pos = _patch(layer_head_vector_patch_setter, "k", "head")
get_act_patch_attn_head_v_all_pos = _patch(layer_head_vector_patch_setter, "v", "head")
get_act_patch_attn_head_pattern_all_pos = _patch(layer_head_pattern_patch_setter, "pattern", "head_index")


def get_act_patch_attn_head_all_pos_every(
    model: Any, corrupted_tokens: Tensor, clean_cache: Any, metric: Metric
) -> Float[Tensor, "5 layer head"]:
    """Patches of every head's output, queries, keys, values and pattern; keys and values of groups padded with 0."""
    sweeps = [
        get_act_patch_attn_head_out_all_pos,
        get_act_patch_attn_head_q_all_pos,
        get_act_patch_attn_head_k_all_pos,
        get_act_patch_attn_head_v_all_pos,
        get_act_patch_attn_head_pattern_all_pos,
    ]
    return _padded([sweep(model, corrupted_tokens, clean_cache, metric) for sweep in sweeps])


def get_act_patch_attn_head_by_pos_every(
    model: Any, corrupted_tokens: Tensor, clean_cache: Any, metric: Metric
) -> Float[Tensor, "5 layer pos head"]:
    """The same position by position; a pattern's position is the query's."""
    sweeps = [
        get_act_patch_attn_head_out_by_pos,
        get_act_patch_attn_head_q_by_pos,
        get_act_patch_attn_head_k_by_pos,
        get_act_patch_attn_head_v_by_pos,
    ]
    results = [sweep(model, corrupted_tokens, clean_cache, metric) for sweep in sweeps]
    pattern = get_act_patch_attn_head_pattern_by_pos(model, corrupted_tokens, clean_cache, metric)
    return _padded([*results, rearrange(pattern, "layer head pos -> layer pos head")])


def get_act_patch_block_every(
    model: Any, corrupted_tokens: Tensor, clean_cache: Any, metric: Metric
) -> Float[Tensor, "3 layer pos"]:
    """Patches of the stream before each block, and of what its attention and its MLP write."""
    sweeps = [get_act_patch_resid_pre, get_act_patch_attn_out, get_act_patch_mlp_out]
    return torch.stack([sweep(model, corrupted_tokens, clean_cache, metric) for sweep in sweeps])


def _padded(results: list[Tensor]) -> Tensor:
    most = max(result.shape[-1] for result in results)
    return torch.stack([torch.nn.functional.pad(result, (0, most - result.shape[-1])) for result in results])
