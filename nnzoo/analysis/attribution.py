"""Direct logit attribution: the logits as a sum of what each part of the model wrote.

The residual stream is a sum, and the last norm, its scale once fixed, and the unembedding are linear: so every part has
a share of its own in each logit, by the direct path to the end. Elhage et al. 2021, A Mathematical Framework for
Transformer Circuits (https://transformer-circuits.pub/2021/framework/index.html).
"""

from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from nnzoo.analysis.metrics import Answer
from nnzoo.analysis.results import Axis, Result
from nnzoo.analysis.subject import Model, Prompts, Subject, Tokens, exclusive
from nnzoo.architectures.activation_cache import ActivationCache

BY = ("component", "head", "neuron", "source")


@exclusive
@torch.no_grad()
def attribute_logits(
    model: Model,
    prompts: Prompts,
    right: Answer,
    wrong: Answer | None = None,
    *,
    by: str = "component",
    position: int = -1,
) -> Result:
    """What each part adds to the logit of `right` at a position, or to its difference to that of `wrong`.

    `by` is "component": the embeddings, each layer's attention and MLP, and what the biases of the last norm and the
    unembedding add: [component], which sum to the logit; "head": [layer head]; "neuron": [layer d_mlp]; "source":
    each head by the token that it moves the information from, [layer head key]. Values are means over prompts; heads
    come without the biases `b_O`, neurons without `b_out`. Weights may be raw: norms are multiplied in. Raw logits have
    a common part that changes no prediction: a difference to a `wrong` token has not, nor has a model with
    `nnzoo.processing.center_unembed`.

    >>> from nnzoo import LanguageModel
    >>> model = LanguageModel("nnzoo/tiny-gpt2")
    >>> parts = attribute_logits(model, "The capital of France is", " Paris", " Rome")
    >>> logits = model("The capital of France is")[0, -1]
    >>> right, wrong = (model.tokenizer.encode(name)[0] for name in (" Paris", " Rome"))
    >>> torch.allclose(parts.values.sum(), logits[right] - logits[wrong], atol=1e-4)
    True
    >>> attribute_logits(model, "The capital of France is", " Paris", by="source").shape
    {'layer': 4, 'head': 4, 'key': 5}
    """
    subject = Subject(model)
    tokens = subject.read(prompts)
    if by not in BY:
        raise ValueError(f"by is one of {', '.join(BY)}, not {by!r}")
    if not -tokens.n_pos <= position < tokens.n_pos:
        raise ValueError(f"position {position} is none of the prompt's {tokens.n_pos}")
    names = ["hook_embed", "*resid_pre", "*attn_out", "*resid_post", "*hook_z"]
    names += ["*mlp_out"] * subject.native.has_mlps
    names += [name for name in ("hook_pos_embed", "ln_final.hook_scale") if name in subject.native.hook_points]
    names += {"neuron": ["*mlp.hook_post"], "source": ["*hook_pattern", "*hook_v"]}.get(by, [])
    _, cache = subject.native.run_with_cache(
        tokens.ids, attention_mask=tokens.mask, names_filter=names, return_type=None
    )
    direction = _direction(subject, tokens, right, wrong)
    what = "logit" if wrong is None else "logit difference"
    values, axes = {"component": _components, "head": _heads, "neuron": _neurons, "source": _sources}[by](
        subject, tokens, cache, direction, position
    )
    return Result(f"direct logit attribution by {by}", what, values, axes)


@torch.no_grad()
def _direction(subject: Subject, tokens: Tokens, right: Answer, wrong: Answer | None) -> Float[Tensor, "batch d_vocab"]:
    """+1 at each prompt's right token and -1 at its wrong one."""
    batch = len(tokens.ids)
    direction = subject.native.unembed.weight.new_zeros(batch, len(subject.native.unembed.weight))
    for sign, answer in ((1.0, right), (-1.0, wrong)):
        if answer is None:
            continue
        ids = subject.ids(answer)
        if len(ids) not in (1, batch):
            raise ValueError(f"{len(ids)} tokens for {batch} prompts: one for all, or one for each")
        direction[torch.arange(batch), ids.expand(batch)] += sign
    return direction


Found = tuple[Tensor, tuple[Axis, ...]]


def _projected(
    subject: Subject, cache: ActivationCache, stack: Tensor, direction: Tensor, position: int
) -> Float[Tensor, "component"]:
    """What components [component batch d_model] at the position add along directions, the mean over prompts."""
    normed = cache.apply_ln_to_stack(stack, pos_slice=position)
    return einsum(normed, direction @ subject.native.unembed.weight, "c batch d, batch d -> c batch").mean(dim=1)


def _components(subject: Subject, tokens: Tokens, cache: ActivationCache, direction: Tensor, position: int) -> Found:
    stack, labels = cache.decompose_resid(pos_slice=position, return_labels=True)
    values = _projected(subject, cache, stack, direction, position)
    native = subject.native
    norm_bias = getattr(native.ln_final, "bias", None)
    after = native.b_U if norm_bias is None else native.b_U + native.unembed.weight @ norm_bias
    bias = (direction @ after).mean()
    return torch.cat([values, bias[None]]), (Axis("component", (*labels, "bias")),)


def _heads(subject: Subject, tokens: Tokens, cache: ActivationCache, direction: Tensor, position: int) -> Found:
    stack: Any = cache.stack_head_results(pos_slice=position)
    values = _projected(subject, cache, stack, direction, position)
    axes = (subject.axis("layer"), subject.axis("head"))
    return values.view(subject.n_layers, subject.n_heads), axes


def _neurons(subject: Subject, tokens: Tokens, cache: ActivationCache, direction: Tensor, position: int) -> Found:
    onto = (direction @ subject.native.unembed.weight).T  # [d_model batch]
    parts: Any = cache.stack_neuron_results(-1, pos_slice=position, apply_ln=True, project_output_onto=onto)
    values = parts.diagonal(dim1=-2, dim2=-1).mean(dim=-1)  # each prompt along its own direction
    axes = (subject.axis("layer"), subject.axis("d_mlp"))
    return values.view(subject.n_layers, -1), axes


def _sources(subject: Subject, tokens: Tokens, cache: ActivationCache, direction: Tensor, position: int) -> Found:
    rows = []
    for layer, block in enumerate(subject.native.blocks):
        v = cache["v", layer]
        v = v.repeat_interleave(subject.n_heads // v.shape[2], dim=2)
        pattern = cache["pattern", layer][:, :, position]
        moved = einsum(pattern, v, block.attn.W_O, "b h key, b key h e, h e d -> h key b d")
        rows.append(_projected(subject, cache, moved.flatten(0, 1), direction, position).view(moved.shape[:2]))
    axes = (subject.axis("layer"), subject.axis("head"), subject.axis("key", tokens))
    return torch.stack(rows), axes
