"""`detect_head`: heads by what they look at, with TransformerLens's measures and the tables of nnzoo.analysis."""

from collections import defaultdict
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnzoo.analysis.heads import duplicate_token, induction, previous_token
from nnzoo.transformer_lens.tensors import is_lower_triangular

HEAD_NAMES = ["previous_token_head", "duplicate_token_head", "induction_head"]
MEASURES = ("abs", "mul")


def detect_head(
    model: Any,
    seq: str | list[str],
    detection_pattern: str | Float[Tensor, "query key"],
    heads: list[tuple[int, int]] | dict[int, list[int]] | None = None,
    cache: Any = None,
    *,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
    error_measure: str = "mul",
) -> Float[Tensor, "layer head"]:
    """How far each head's pattern is that of a kind of head, or a table of your own: [layer head].

    "mul" is the share of attention that goes where the table is 1; "abs" is 1 less the mean difference to it, from -1
    to 1. Of several texts the mean. Heads that are not among `heads` have -1. `cache` is that of a run on `seq`.

    >>> from nnzoo.transformer_lens import HookedTransformer
    >>> model = HookedTransformer.from_pretrained("nnzoo/tiny-gpt2")
    >>> detect_head(model, " river cake Oslo green river cake Oslo green", "induction_head").max() > 0.2
    tensor(True)
    """
    if error_measure not in MEASURES:
        raise AssertionError(f"error_measure is 'mul' or 'abs', not {error_measure!r}")
    options = {"exclude_bos": exclude_bos, "exclude_current_token": exclude_current_token}
    if isinstance(seq, list) and isinstance(detection_pattern, str):
        if cache is not None:
            raise ValueError("one cache is that of one text; give one text, or no cache")
        scores = [detect_head(model, s, detection_pattern, heads, error_measure=error_measure, **options) for s in seq]
        return torch.stack(scores).mean(dim=0)
    tokens = model.to_tokens(seq)
    wanted = _table(detection_pattern, tokens).to(tokens.device)
    if not 1 < tokens.shape[-1] < model.cfg.n_ctx:
        raise AssertionError(f"{tokens.shape[-1]} tokens: at least 2 are needed, and fewer than {model.cfg.n_ctx}")
    if cache is None:
        _, cache = model.run_with_cache(tokens, names_filter="blocks.*.attn.hook_pattern", return_type=None)
    found = torch.stack([_one_prompt(cache["pattern", layer]) for layer in range(model.cfg.n_layers)])
    return _only(_scores(found, wanted, error_measure=error_measure, **options), heads)


def _one_prompt(pattern: Tensor) -> Float[Tensor, "head query key"]:
    return pattern[0] if pattern.ndim == 4 else pattern


def _table(kind: str | Tensor, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "query key"]:
    if isinstance(kind, str):
        if kind not in HEAD_NAMES:
            raise AssertionError(f"{kind!r} is no kind of head; there are {', '.join(HEAD_NAMES)}, or give a table")
        return dict(zip(HEAD_NAMES, TABLES, strict=True))[kind](tokens)
    if not is_lower_triangular(kind) or len(kind) != tokens.shape[-1]:
        raise AssertionError(
            f"a table is [{tokens.shape[-1]} {tokens.shape[-1]}], 0 above the diagonal; this is {list(kind.shape)}"
        )
    return kind.float()


def get_previous_token_head_detection_pattern(tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "query key"]:
    """1 where a token looks at the one before."""
    return previous_token(tokens)[0].float()


def get_duplicate_token_head_detection_pattern(tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "query key"]:
    """1 where a token looks at itself earlier on."""
    return duplicate_token(tokens)[0].float()


def get_induction_head_detection_pattern(tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "query key"]:
    """1 where a token looks at what followed it earlier on."""
    return induction(tokens)[0].float()


TABLES = (
    get_previous_token_head_detection_pattern,
    get_duplicate_token_head_detection_pattern,
    get_induction_head_detection_pattern,
)


def compute_head_attention_similarity_score(
    attention_pattern: Float[Tensor, "query key"],
    detection_pattern: Float[Tensor, "query key"],
    *,
    exclude_bos: bool,
    exclude_current_token: bool,
    error_measure: str,
) -> float:
    """The score of one head's pattern."""
    options = {"exclude_bos": exclude_bos, "exclude_current_token": exclude_current_token}
    return _scores(attention_pattern, detection_pattern, error_measure=error_measure, **options).item()


def _scores(
    patterns: Float[Tensor, "*many query key"],
    wanted: Float[Tensor, "query key"],
    *,
    exclude_bos: bool,
    exclude_current_token: bool,
    error_measure: str,
) -> Float[Tensor, "*many"]:
    n = wanted.shape[0]
    counted = torch.ones_like(wanted)
    if exclude_bos:
        counted[:, 0] = 0
    if exclude_current_token:
        counted.fill_diagonal_(0)
    if error_measure == "mul":
        looked = patterns * counted
        return (looked * wanted).sum(dim=(-1, -2)) / looked.sum(dim=(-1, -2))
    differences = (patterns - wanted).abs() * counted
    return 1 - (differences.mean(dim=(-1, -2)) * n).mul(1000).round().div(1000)


def _only(scores: Float[Tensor, "layer head"], heads: Any) -> Float[Tensor, "layer head"]:
    if heads is None:
        return scores
    if isinstance(heads, list):
        by_layer = defaultdict(list)
        for layer, head in heads:
            by_layer[layer].append(head)
        heads = by_layer
    kept = torch.full_like(scores, -1)
    for layer, some in heads.items():
        kept[layer, some] = scores[layer, some]
    return kept
