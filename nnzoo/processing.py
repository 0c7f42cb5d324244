"""Weights rewritten into an equivalent model that is easier to read.

What a norm multiplies by, what is added to every residual stream alike, what shifts all logits alike: a model's
predictions do not depend on where such things stand, but a reading of its parts does. Each function gives back a new
model and leaves the one it was given as it is; nothing is processed unless asked.

The steps and their order are TransformerLens's; for the reasons see the appendix of Elhage et al. 2021, A
Mathematical Framework for Transformer Circuits (https://transformer-circuits.pub/2021/framework/index.html).

>>> import torch
>>> from nnzoo.architectures.gpt2 import GPT2, GPT2Config
>>> model = GPT2(GPT2Config(
...     d_vocab=50, n_ctx=16, d_model=8, n_layers=2, n_heads=2, d_mlp=32, activation="gelu_new", eps=1e-5,
...     scale_scores=True, scale_by_layer=False, tied=True,
... ))
>>> tokens = torch.tensor([[3, 1, 4]])
>>> torch.allclose(fold_ln(model)(tokens), model(tokens), atol=1e-5)
True
>>> torch.allclose(process_weights(model)(tokens).softmax(-1), model(tokens).softmax(-1), atol=1e-5)
True
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch
from einops import einsum, repeat
from jaxtyping import Float
from torch import Tensor, nn

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.norms import LayerNorm, NoNorm

Model = TypeVar("Model", bound=HookedModel)


def fold_ln(model: Model) -> Model:
    """Move the weights of every norm into what reads its output: q, k, v, the MLP's inputs, the unembedding.

    Norms are left with weight 1 and bias 0, so that `hook_normalized` is what is read. After a LayerNorm, whose output
    has mean 0, the reading weights are centred too. A tied unembedding becomes a matrix of its own. The logits stay.
    """
    return _processed(model, _fold_ln)


def center_writing_weights(model: Model) -> Model:
    """Take the mean over d_model out of everything that is added to the residual stream; the logits stay.

    Raises ValueError for a model with RMSNorm: LayerNorm subtracts this mean anyway, RMSNorm does not, so there the
    result would be another model.
    """
    return _processed(model, _center_writing_weights)


def center_unembed(model: Model) -> Model:
    """Take the mean over the vocabulary out of the unembedding: all logits of a position shift alike.

    Log-probabilities and differences of logits stay; the logits themselves have mean 0.
    """
    return _processed(model, _center_unembed)


def fold_value_biases(model: Model) -> Model:
    """Move the values' biases into attention's output bias; the logits stay.

    A pattern's rows sum to 1, so these biases reach the output whole, whatever is attended to. Where hooks change a
    pattern so that its rows sum to something else, the two models differ.
    """
    return _processed(model, _fold_value_biases)


def process_weights(
    model: Model,
    *,
    fold_ln: bool = True,
    center_writing_weights: bool | None = None,
    center_unembed: bool = True,
    fold_value_biases: bool = True,
) -> Model:
    """All of this, in TransformerLens's order, as its `from_pretrained` does by default.

    Writing weights are centred, by default, just where the norms are LayerNorms. The log-probabilities stay.
    """
    if center_writing_weights is None:
        center_writing_weights = isinstance(model.ln_final, LayerNorm)
    wanted = {
        _fold_ln: fold_ln,
        _center_writing_weights: center_writing_weights,
        _center_unembed: center_unembed,
        _fold_value_biases: fold_value_biases,
    }
    return _processed(model, *(step for step, asked in wanted.items() if asked))


def _processed(model: Model, *steps: Callable[[HookedModel], None]) -> Model:
    new = _untied_copy(model)
    if model.dtype.itemsize < 4:
        new.float()  # one rounding at the end, none in between
    with torch.no_grad():
        for step in steps:
            step(new)
    return new.to(model.dtype)


def _untied_copy(model: Model) -> Model:
    """A copy without the hooks, with the same tokenizer, and with an unembedding of its own."""
    shared = {id(model._tokenizer): model._tokenizer}
    blank = {id(part): type(part)() for p in model.hook_points.values() for part in (p.hooks, p.ctx)}
    new = copy.deepcopy(model, {**shared, **blank})
    if model.config.tied:
        new.config = replace(model.config, tied=False)
        new.unembed.weight = nn.Parameter(new.embed.weight.detach().clone())
    return new


def _fold_ln(model: Any) -> None:
    if isinstance(model.ln_final, LayerNorm) and not isinstance(model.unembed.b_U, nn.Parameter):
        model.unembed.bias = nn.Parameter(model.unembed.b_U)
    for norm, *readers in _norms(model):
        for W, b in readers:
            _fold(norm, W, b)
        norm.weight.fill_(1)
        if isinstance(norm, LayerNorm):
            norm.bias.zero_()


def _norms(model: Any) -> Iterator[tuple]:
    """Every norm, and the weights and biases that read its output."""
    if isinstance(model.ln_final, NoNorm):
        return
    if hasattr(model, "pos_embed") and not model.adds_positions:
        raise NotImplementedError("shortformer positions come in behind the norms: these cannot be folded")
    for block in model.blocks:
        attn = block.attn
        yield block.ln1, (attn.W_Q, attn.b_Q), (attn.W_K, attn.b_K), (attn.W_V, attn.b_V)
        if not model.has_mlps:
            continue
        mlp = block.mlp
        gates = [(mlp.W_gate, mlp.gate.bias)] if hasattr(mlp, "W_gate") else []
        yield block.ln2, (mlp.W_in, mlp.b_in), *gates
        if hasattr(mlp, "ln"):
            yield mlp.ln, (mlp.W_out, mlp.b_out)
    yield model.ln_final, (model.unembed.W_U, model.unembed.b_U)


def _fold(norm: Any, W: Float[Tensor, "*head d_in d_out"], b: Float[Tensor, "*head d_out"] | None) -> None:
    if isinstance(norm, LayerNorm) and b is not None:
        b += norm.bias @ W
    W *= norm.weight[:, None]
    if isinstance(norm, LayerNorm):
        W -= W.mean(dim=-2, keepdim=True)


def _center_writing_weights(model: Any) -> None:
    if not isinstance(model.ln_final, LayerNorm):
        raise ValueError(
            f"center_writing_weights keeps the predictions of models with LayerNorm, which ignores the mean of the "
            f"residual stream; {type(model).__name__} has {type(model.ln_final).__name__}, which does not"
        )
    writing = [model.W_E, model.W_pos] if model.adds_positions else [model.W_E]
    for block in model.blocks:
        writing += [block.attn.W_O, block.attn.b_O]
        writing += [block.mlp.W_out, block.mlp.b_out] if model.has_mlps else []
    for weight in writing:
        weight -= weight.mean(dim=-1, keepdim=True)


def _center_unembed(model: HookedModel) -> None:
    for weight in (model.W_U, model.b_U):
        weight -= weight.mean(dim=-1, keepdim=True)


def _fold_value_biases(model: HookedModel) -> None:
    group = model.config.n_heads // model.config.n_kv_heads
    for block in model.blocks:
        b_V = repeat(block.attn.b_V, "kv_head d_head -> (kv_head group) d_head", group=group)
        b_O = block.attn.b_O  # zeros that nobody keeps, where attention has no biases
        b_O += einsum(b_V, block.attn.W_O, "head d_head, head d_head d_model -> d_model")
        block.attn.b_V.zero_()
