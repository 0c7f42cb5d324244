"""The logit lens: what the model would say if it stopped on the way.

The last norm and the unembedding, applied to the residual stream of every layer, or to what single parts write into it.

Source: nostalgebraist 2020, interpreting GPT: the logit lens
(https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnzoo.analysis.metrics import Answer
from nnzoo.analysis.results import Axis, Result
from nnzoo.analysis.sites import streams_of
from nnzoo.analysis.subject import Model, Subject, exclusive
from nnzoo.analysis.tuned_lens import TunedLens, translated
from nnzoo.architectures.html import shown

Guesses = tuple[tuple[str, float], ...]
LIKELY = 5


@dataclass(frozen=True, eq=False, repr=False)
class Lens(Result):
    """The probability of each layer's best guess at each position, or that of a target; the guesses, and its ranks."""

    guesses: Int[Tensor, "layer pos"]  # the most likely token
    texts: tuple[tuple[str, ...], ...]  # [layer][pos]
    likely: tuple[tuple[Guesses, ...], ...]  # [layer][pos]: the likeliest tokens and their probabilities
    logits: Float[Tensor, "layer pos d_vocab"]
    ranks: Int[Tensor, "layer pos"] | None = None  # of the target: 0 is the most likely token

    def cell(self, index: tuple[int, ...]) -> str:
        """The guess and its probability; with a target that one's probability and rank."""
        value = f"{self.values[index].item():.2f}"
        if self.ranks is not None:
            return f"{value} #{self.ranks[index].item()}"
        layer, pos = index
        return f"{shown(self.texts[layer][pos])} {value}"

    def hover(self, index: tuple[int, ...]) -> str:
        """Place and number, and the likeliest tokens there."""
        layer, pos = index
        guesses = ", ".join(f"{token!r} {probability:.3f}" for token, probability in self.likely[layer][pos])
        return f"{super().hover(index)}\n{guesses}"


@exclusive
@torch.no_grad()
def logit_lens(
    model: Model,
    prompt: str | Tensor,
    target: Answer | None = None,
    *,
    at: str = "resid_post",
    positions: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    tuned: TunedLens | None = None,
) -> Lens:
    """What the model would predict from the value at a hook point of each layer: [layer pos].

    `at` is any hook point of the residual stream's width: "resid_pre", "resid_mid", "resid_post" for the stream on its
    way, "attn_out" or "mlp_out" for what one part writes. Values are probabilities: of the best guess, or of `target`
    (one token, or one for each position that is looked at; `prompt` moved on by one asks for what comes next), with its
    `ranks`. `positions` picks some. With a `tuned` lens (`train_tuned_lens`) its map of each layer comes first; then
    `layers` are by default its own. One prompt; raises ValueError for several, and for a lens of another place.

    >>> from nnzoo import LanguageModel
    >>> model = LanguageModel("nnzoo/tiny-gpt2")
    >>> lens = logit_lens(model, "The capital of France is")
    >>> lens.shape, lens.texts[-1][-1]
    ({'layer': 4, 'pos': 5}, ' Paris')
    >>> logit_lens(model, "The capital of France is", " Paris", positions=[-1]).ranks[-1]
    tensor([0])
    """
    subject = Subject(model)
    tokens = subject.read(prompt)
    if len(tokens.ids) > 1:
        raise ValueError(f"a lens shows one prompt, not {len(tokens.ids)}")
    sites = streams_of(subject, tokens, at, tuned.layers if tuned and layers is None else layers)
    where = torch.arange(tokens.n_pos) if positions is None else torch.arange(tokens.n_pos)[list(positions)]
    _, cache = subject.native.run_with_cache(tokens.ids, names_filter=list(sites.names), return_type=None)
    streams = torch.stack([cache[name][0, where] for name in sites.names])
    if tuned is not None:
        streams = translated(streams, *tuned.maps(at, sites.layers))
    logits = subject.native.unembed(subject.native.ln_final.fused(streams))
    probabilities = logits.softmax(dim=-1)
    best = probabilities.max(dim=-1)
    texts = tuple(tuple(subject.text(i) for i in row) for row in best.indices.tolist())
    likely = tuple(tuple(guesses(subject, one) for one in row) for row in probabilities)
    pos = Axis("pos", tuple(sites.axes[1].labels[i] for i in where.tolist()))
    values, ranks = best.values, None
    if target is not None:
        wanted = subject.ids(target)
        if len(wanted) not in (1, len(where)):
            raise ValueError(f"{len(wanted)} targets for {len(where)} positions: one for all, or one for each")
        wanted = wanted.expand(logits.shape[:2])[..., None]
        values, ranks = probabilities.gather(-1, wanted)[..., 0], (logits > logits.gather(-1, wanted)).sum(dim=-1)
    title = f"{'tuned' if tuned else 'logit'} lens at {at}" + ("" if target is None else f" for {target!r}")
    return Lens(title, "probability", values, (sites.axes[0], pos), best.indices, texts, likely, logits, ranks)


def guesses(subject: Subject, probabilities: Float[Tensor, "d_vocab"], k: int = LIKELY) -> Guesses:
    """The k likeliest tokens as texts, with their probabilities."""
    top = probabilities.topk(min(k, len(probabilities)))
    return tuple((subject.text(i), p) for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True))
