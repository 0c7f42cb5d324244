"""Causal tracing: where a fact is recalled, found by restoring single states of a run whose subject was blurred.

Meng et al. 2022, Locating and Editing Factual Associations in GPT (https://arxiv.org/abs/2202.05262).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nnzoo.analysis.metrics import Probability
from nnzoo.analysis.results import Effects
from nnzoo.analysis.sites import Sites, sites_of, values_at
from nnzoo.analysis.subject import Model, Subject, Token, Tokens, exclusive
from nnzoo.analysis.sweep import Base, Experiment


@exclusive
def causal_trace(
    model: Model,
    prompt: str | Tensor,
    subject: str | Sequence[int],
    answer: Token | None = None,
    *,
    at: str = "resid_post",
    window: int = 1,
    noise: float = 3.0,
    samples: int = 10,
    seed: int = 0,
    batch_size: int | None = None,
) -> Effects:
    """The probability of the answer after one state of the clean run was restored in runs with a blurred subject.

    The embeddings of the subject's tokens get Gaussian noise, `noise` times the standard deviation of all embeddings;
    into each of `samples` such runs goes, at one position, what stands `at` "resid_post", "attn_out" or "mlp_out" of
    `window` layers around one (the paper takes 10 of GPT-2 XL's 48 for the latter two). Values are [layer pos], the
    mean over samples; `base` is the probability with nothing restored, `source` that of the clean run.

    `subject` is a part of the text, or positions. Without an `answer` it is the model's own.
    Raises ValueError where the prompt does not have the subject.

    >>> from nnzoo import LanguageModel
    >>> model = LanguageModel("nnzoo/tiny-gpt2")
    >>> traced = causal_trace(model, "The capital of France is", "France", samples=4)
    >>> traced.shape, traced.base < 0.5 < traced.source
    ({'layer': 4, 'pos': 5}, True)
    """
    studied = Subject(model)
    tokens = studied.read(prompt)
    if len(tokens.ids) > 1:
        raise ValueError(f"causal tracing takes one prompt, not {len(tokens.ids)}")
    if window < 1 or samples < 1:
        raise ValueError(f"window and samples are at least 1, not {window} and {samples}")
    positions = positions_of(studied, tokens, subject)
    clean = Base(studied, tokens, Probability(_answer(studied, tokens, answer)))
    blur = _noise(studied, len(positions), noise, samples, seed)

    def blurred(value: Tensor, hook: object) -> None:
        value[:, positions] += blur

    run = Base(studied, tokens.repeated(samples), clean.metric, [("hook_embed", blurred)])
    sites = sites_of(studied, tokens, at, "pos")
    experiments = _windows(sites, values_at(studied, tokens, sites.names), window)
    scores = run.run(experiments, batch_size, "causal tracing").view(sites.shape)
    title = f"causal tracing at {at}" + (f", {window} layers" if window > 1 else "")
    return Effects(title, run.quantity, scores, sites.axes, run.score, clean.score)


def positions_of(studied: Subject, tokens: Tokens, part: str | Sequence[int]) -> list[int]:
    """The positions that a part of a prompt's text touches; positions are given back, counted from the start."""
    if not isinstance(part, str):
        return [i % tokens.n_pos for i in part]
    pieces = ["".join(text.split()) for text in studied.labels(tokens)]  # not every tokenizer shows its blanks
    start = "".join(pieces).find(wanted := "".join(part.split()))
    if start < 0 or not wanted:
        raise ValueError(f"{part!r} is no part of the prompt, whose tokens are {list(studied.labels(tokens))}")
    ends = torch.tensor([len(piece) for piece in pieces]).cumsum(dim=0).tolist()
    return [
        i for i, (end, piece) in enumerate(zip(ends, pieces, strict=True))
        if end > start and end - len(piece) < start + len(wanted)
    ]  # fmt: skip


@torch.no_grad()
def _answer(studied: Subject, tokens: Tokens, answer: Token | None) -> Tensor:
    if answer is not None:
        return studied.ids(answer)
    return studied.native(tokens.ids, attention_mask=tokens.mask)[:, -1].argmax(dim=-1)


def _noise(studied: Subject, n: int, noise: float, samples: int, seed: int) -> Float[Tensor, "sample some d_model"]:
    table = studied.native.embed.weight.detach()
    drawn = torch.randn(samples, n, table.shape[1], generator=torch.Generator().manual_seed(seed))
    return (noise * table.std().cpu() * drawn).to(table)


def _windows(sites: Sites, values: list[Tensor], window: int) -> list[Experiment]:
    n = len(sites.names)
    around = [range(max(0, i - window // 2), min(n, i + (window + 1) // 2)) for i in range(n)]
    return [sites.replacement(layers, index, values) for layers in around for index in sites.indices]
