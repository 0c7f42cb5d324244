"""Edge attribution patching: every edge between parts of the model at once, to first order.

Syed et al. 2023, Attribution Patching Outperforms Automated Circuit Discovery (https://arxiv.org/abs/2310.10348).
"""

from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from nnzoo.analysis.gradients import gradients_at
from nnzoo.analysis.metrics import Metric
from nnzoo.analysis.results import Axis, Result
from nnzoo.analysis.sites import values_at
from nnzoo.analysis.subject import Model, Prompts, Subject, Tokens, exclusive
from nnzoo.analysis.sweep import Base


@exclusive
def attribute_edges(model: Model, base: Prompts, source: Prompts, metric: Metric) -> Result:
    """By how much the metric of `base` changes when a part is heard by one other part as it is on `source`.

    Senders are the embeddings, every head and every MLP; receivers the queries, keys and values of every head ("L1H0
    q"), every MLP and the end. An effect is (what the sender writes on `source` - on `base`) x the metric's gradient at
    what the receiver reads: [sender receiver], 0 where the sender does not stand before the receiver. The effects on
    one receiver sum to that of changing all it reads. With grouped queries keys and values have fewer heads.

    >>> from nnzoo import LanguageModel
    >>> model = LanguageModel("nnzoo/tiny-gpt2")
    >>> edges = attribute_edges(model, "The capital of Italy is", "The capital of France is", (" Paris", " Rome"))
    >>> edges.shape  # 1 + 4 x (4 heads + MLP); 4 x (3 x 4 + MLP) + 1
    {'sender': 21, 'receiver': 53}
    """
    subject = Subject(model)
    base_tokens, source_tokens = subject.pair(base, source)
    run = Base(subject, base_tokens, metric)
    written, senders = _written(subject, base_tokens, source_tokens)
    read, receivers = _read(subject, run)
    values = einsum(written, read, "sender b p d, receiver b p d -> sender receiver")
    allowed = torch.tensor([[a < b for _, b in receivers] for _, a in senders], device=values.device)
    axes = (Axis("sender", tuple(name for name, _ in senders)), Axis("receiver", tuple(n for n, _ in receivers)))
    return Result("edge attribution", f"change of {run.quantity}", values * allowed, axes)


Named = list[tuple[str, float]]  # parts, with when they are computed: heads of layer i at i, its MLP at i + 0.5


@torch.no_grad()
def _written(subject: Subject, base: Tokens, source: Tokens) -> tuple[Float[Tensor, "sender b p d"], Named]:
    """By how much what each part writes differs between two runs."""
    names = ["blocks.0.hook_resid_pre"]
    names += [f"blocks.{i}.{place}" for i in range(subject.n_layers) for place in ("attn.hook_z", "hook_mlp_out")]
    differences = [b - a for a, b in zip(*(values_at(subject, t, names) for t in (base, source)), strict=True)]
    written, named = [differences[0][None]], [("embed", -1.0)]
    for i in range(subject.n_layers):
        block: Any = subject.native.blocks[i]
        z, mlp = differences[1 + 2 * i : 3 + 2 * i]
        written += [einsum(z, block.attn.W_O, "b p h e, h e d -> h b p d"), mlp[None]]
        named += [(f"L{i}H{head}", float(i)) for head in range(subject.n_heads)] + [(f"L{i} mlp", i + 0.5)]
    return torch.cat(written), named


def _read(subject: Subject, run: Base) -> tuple[Float[Tensor, "receiver b p d"], Named]:
    """The metric's gradient at what each part reads."""
    places = ("hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in")
    names = [f"blocks.{i}.{place}" for i in range(subject.n_layers) for place in places] + ["ln_final.hook_in"]
    _, gradients = gradients_at(run, names)
    read, named = [], []
    for name, gradient in zip(names, gradients, strict=True):
        if name == "ln_final.hook_in":
            read.append(gradient[None])
            named.append(("logits", float(subject.n_layers)))
            continue
        layer, place = int(name.split(".")[1]), name.removesuffix("_input")[-1]
        if name.endswith("mlp_in"):
            read.append(gradient[None])
            named.append((f"L{layer} mlp", layer + 0.5))
        else:
            read.append(gradient.movedim(2, 0))
            named += [(f"L{layer}H{head} {place}", float(layer)) for head in range(gradient.shape[2])]
    return torch.cat(read), named
