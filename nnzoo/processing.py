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

from nnzoo.architectures.gpt2 import Conv1D
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.norms import LayerNorm, Norm

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


def _fold_ln(model: HookedModel) -> None:
    for norm, readers in _norms(model):
        for reader in readers:
            _fold(norm, reader)
        norm.weight.fill_(1)
        if isinstance(norm, LayerNorm):
            norm.bias.zero_()


def _norms(model: HookedModel) -> Iterator[tuple[Any, list[Any]]]:
    """Every norm with the maps that read its output."""
    for block in model.blocks:
        yield block.ln1, [part for name, part in block.attn.named_children() if name in ("qkv", "q", "k", "v")]
        yield block.ln2, [part for name, part in block.mlp.named_children() if name in ("gate", "up")]
    yield model.ln_final, [model.unembed]


def _fold(norm: Norm, reader: Any) -> None:
    W = _from_the_right(reader)
    if isinstance(norm, LayerNorm):
        if reader.bias is None:
            reader.bias = nn.Parameter(W.new_zeros(W.shape[1]))
        reader.bias += norm.bias @ W
    W *= norm.weight[:, None]
    if isinstance(norm, LayerNorm):
        W -= W.mean(dim=0)


def _center_writing_weights(model: Any) -> None:
    if not isinstance(model.ln_final, LayerNorm):
        raise ValueError(
            f"center_writing_weights keeps the predictions of models with LayerNorm, which ignores the mean of the "
            f"residual stream; {type(model).__name__} has {type(model.ln_final).__name__}, which does not"
        )
    writers = [part for block in model.blocks for part in (block.attn.out, block.mlp.down)]
    for weight in (model.embed.weight, model.pos_embed.weight, *map(_from_the_right, writers)):
        weight -= weight.mean(dim=1, keepdim=True)
    for writer in writers:
        writer.bias -= writer.bias.mean()


def _center_unembed(model: HookedModel) -> None:
    model.unembed.weight -= model.unembed.weight.mean(dim=0)
    if model.unembed.bias is not None:
        model.unembed.bias -= model.unembed.bias.mean()


def _fold_value_biases(model: HookedModel) -> None:
    group = model.config.n_heads // model.config.n_kv_heads
    for block in model.blocks:
        if block.attn.out.bias is None:
            continue  # attention has its four biases or none
        b_V = repeat(block.attn.b_V, "kv_head d_head -> (kv_head group) d_head", group=group)
        block.attn.out.bias += einsum(b_V, block.attn.W_O, "head d_head, head d_head d_model -> d_model")
        block.attn.b_V.zero_()


def _from_the_right(module: Any) -> Float[Tensor, "d_in d_out"]:
    return module.weight if isinstance(module, Conv1D) else module.weight.t()
