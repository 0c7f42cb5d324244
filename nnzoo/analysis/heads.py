"""Heads by what they look at: previous token, earlier occurrence of the same token, what followed it (induction).

Papers: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits
(https://transformer-circuits.pub/2021/framework/index.html); Olsson et al. 2022, In-context Learning and Induction
Heads (https://arxiv.org/abs/2209.11895); Wang et al. 2022 (https://arxiv.org/abs/2211.00593).
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnzoo.analysis.results import Result
from nnzoo.analysis.subject import Model, Prompts, Subject, Tokens, exclusive


def previous_token(ids: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch query key"]:
    """Each token to the one before.

    >>> previous_token(torch.tensor([[5, 6, 7]]))[0].int()
    tensor([[0, 0, 0],
            [1, 0, 0],
            [0, 1, 0]], dtype=torch.int32)
    """
    n = ids.shape[1]
    return torch.ones(n, n, dtype=torch.bool, device=ids.device).triu(-1).tril(-1).expand(len(ids), n, n)


def duplicate_token(ids: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch query key"]:
    """Each token to its earlier occurrences.

    >>> duplicate_token(torch.tensor([[5, 6, 5]]))[0].int()
    tensor([[0, 0, 0],
            [0, 0, 0],
            [1, 0, 0]], dtype=torch.int32)
    """
    return (ids[:, :, None] == ids[:, None]).tril(-1)


def induction(ids: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch query key"]:
    """Each token to those that followed its earlier occurrences.

    >>> induction(torch.tensor([[5, 6, 5]]))[0].int()
    tensor([[0, 0, 0],
            [0, 0, 0],
            [0, 1, 0]], dtype=torch.int32)
    """
    same = duplicate_token(ids)
    return torch.cat([torch.zeros_like(same[:, :, :1]), same[:, :, :-1]], dim=-1).tril()


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "previous_token": previous_token,
    "duplicate_token": duplicate_token,
    "induction": induction,
}


@exclusive
@torch.no_grad()
def detect_heads(
    model: Model,
    prompts: Prompts,
    kind: str | Float[Tensor, "query key"] | Bool[Tensor, "query key"],
    *,
    exclude_first: bool = False,
    exclude_self: bool = False,
) -> Result:
    """The share of each head's attention that goes where a kind of head looks: [layer head], 0 to 1.

    `kind` is "previous_token", "duplicate_token", "induction", or a table [query key] of 0 and 1. Attention to the
    first token (where idle heads rest) and to the token itself can be left out of the total. Every prompt counts alike;
    padding does not count.

    >>> from nnzoo import LanguageModel
    >>> model = LanguageModel("nnzoo/tiny-gpt2")
    >>> scores = detect_heads(model, " river cake Oslo green river cake Oslo green", "induction", exclude_first=True)
    >>> scores.shape
    {'layer': 4, 'head': 4}
    """
    subject = Subject(model)
    tokens = subject.read(prompts)
    wanted = _wanted(kind, tokens)
    counted = _counted(tokens, exclude_first, exclude_self)
    rows = []
    for pattern in _patterns(subject, tokens):
        looked = pattern * counted[:, None]
        rows.append(((looked * wanted[:, None]).sum(dim=(-1, -2)) / looked.sum(dim=(-1, -2))).mean(dim=0))
    name = kind.replace("_", " ") if isinstance(kind, str) else "given"
    axes = (subject.axis("layer"), subject.axis("head"))
    return Result(f"{name} heads", "share of attention", torch.stack(rows), axes)


def _wanted(kind: str | Tensor, tokens: Tokens) -> Tensor:
    if isinstance(kind, str):
        if kind not in KINDS:
            raise ValueError(f"no kind of head is called {kind!r}; there are {', '.join(KINDS)}, or give a table")
        return KINDS[kind](tokens.ids).to(tokens.ids.device)
    if kind.shape != (tokens.n_pos, tokens.n_pos):
        raise ValueError(f"the table is {list(kind.shape)}, but prompts have {tokens.n_pos} tokens [query key]")
    return kind.to(tokens.ids.device).expand(len(tokens.ids), -1, -1)


def _counted(tokens: Tokens, exclude_first: bool, exclude_self: bool) -> Bool[Tensor, "batch query key"]:
    n, real = tokens.n_pos, tokens.real
    counted = real[:, :, None] & real[:, None]
    if exclude_first:
        first = real & (real.cumsum(dim=1) == 1)
        counted = counted & ~first[:, None]
    if exclude_self:
        counted = counted & ~torch.eye(n, dtype=torch.bool, device=real.device)
    return counted


def _patterns(subject: Subject, tokens: Tokens) -> list[Float[Tensor, "batch head query key"]]:
    _, cache = subject.native.run_with_cache(
        tokens.ids, attention_mask=tokens.mask, names_filter="*attn.hook_pattern", return_type=None
    )
    return [cache["pattern", layer] for layer in range(subject.n_layers)]


def repeated_tokens(
    model: Model, n: int = 8, period: int = 16, *, vocabulary: Sequence[int] | Tensor | None = None, seed: int = 0
) -> Int[Tensor, "batch pos"]:
    """Random tokens that come twice, as ids [n 2*period], without the beginning of a text; the same for a seed.

    `vocabulary` are the ids to draw from; by default all of them.

    >>> from nnzoo import load
    >>> repeated_tokens(load("nnzoo/tiny-gpt2"), n=2, period=3, vocabulary=[7, 8]).shape
    torch.Size([2, 6])
    """
    subject = Subject(model)
    ids = torch.arange(subject.native.config.d_vocab) if vocabulary is None else torch.as_tensor(vocabulary)
    drawn = torch.randint(len(ids), (n, period), generator=torch.Generator().manual_seed(seed))
    return ids[drawn].repeat(1, 2).to(subject.native.device)


@exclusive
def induction_scores(model: Model, tokens: Int[Tensor, "batch pos"] | None = None) -> Result:
    """How far each head looks, from each token of a second copy, at what followed it in the first: [layer head].

    `tokens` are sequences that come twice, [batch 2*period]; by default random ones (`repeated_tokens`).
    Olsson et al. 2022 (https://arxiv.org/abs/2209.11895). Raises ValueError where they do not come twice.

    >>> from nnzoo import load
    >>> scores = induction_scores(load("nnzoo/tiny-gpt2"))
    >>> scores.top(1)[0].value > 0.3
    True
    """
    subject = Subject(model)
    tokens = repeated_tokens(model) if tokens is None else tokens
    period = tokens.shape[1] // 2
    if not torch.equal(tokens[:, :period], tokens[:, period:]):
        raise ValueError("tokens do not come twice: their second half is another than the first")
    queries = torch.arange(period, 2 * period)
    with torch.no_grad():
        patterns = _patterns(subject, subject.read(tokens))
    looks = torch.stack([pattern[:, :, queries, queries - period + 1].mean(dim=(0, 2)) for pattern in patterns])
    axes = (subject.axis("layer"), subject.axis("head"))
    return Result("induction heads", "share of attention", looks, axes)
