"""Sparse autoencoders and transcoders: a value of the model as few features out of many, and back.

Folders in the layout of SAELens are read (cfg.json and sae_weights.safetensors). Papers: Bricken et al. 2023, Towards
Monosemanticity (https://transformer-circuits.pub/2023/monosemantic-features), and by architecture: gated
(https://arxiv.org/abs/2404.16014), JumpReLU (https://arxiv.org/abs/2407.14435), top-k
(https://arxiv.org/abs/2406.04093), transcoders (https://arxiv.org/abs/2406.11944).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import relu

from nnzoo.analysis.subject import Model, Prompts, Subject, exclusive, lock_of
from nnzoo.architectures.hooked_model import Hooks
from nnzoo.architectures.hooks import HookPoint

Features = Float[Tensor, "*batch d_sae"]
EditFeatures = Callable[[Tensor], Tensor | None]  # features [batch pos d_sae]: new ones, or None if edited in place


@dataclass(frozen=True)
class SAEConfig:
    """What a folder says of its autoencoder."""

    architecture: str  # one of ARCHITECTURES
    d_in: int
    d_sae: int
    d_out: int  # d_in, unless it is a transcoder
    hook_in: str  # the hook point that is read
    hook_out: str  # the one that is reconstructed: the same, unless it is a transcoder
    subtract_b_dec: bool  # from what is encoded
    normalize: str  # "none", "layer_norm" or "constant_norm_rescale"
    merge_heads: bool  # the value is [... head d_head], and read as one vector
    k: int | None = None  # of topk
    rescale_by_decoder: bool = False  # topk compares features by what they write


@dataclass(frozen=True, eq=False)
class SAE:
    """A sparse autoencoder, or a transcoder; `load_sae` reads one from a folder.

    >>> place = "blocks.0.hook_resid_pre"
    >>> config = SAEConfig("standard", 4, 8, 4, place, place, True, "none", False)
    >>> weights = {"W_enc": torch.ones(4, 8), "b_enc": torch.zeros(8), "W_dec": torch.ones(8, 4) / 8}
    >>> sae = SAE(config, {**weights, "b_dec": torch.zeros(4)})
    >>> sae.encode(torch.ones(1, 4)).shape, sae(torch.ones(1, 4))
    (torch.Size([1, 8]), tensor([[4., 4., 4., 4.]]))
    """

    config: SAEConfig
    weights: dict[str, Tensor]

    def encode(self, x: Tensor) -> Features:
        """The features of values [... d_in] (or [... head d_head])."""
        w = self.weights
        x = self._normalized(self._flat(x))[0]
        if self.config.subtract_b_dec:
            x = x - w["b_dec"]
        if self.config.architecture == "gated":
            open_gates = x @ w["W_enc"] + w["b_gate"] > 0
            return open_gates * relu(x @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"])
        pre = x @ w["W_enc"] + w["b_enc"]
        if "threshold" in w:
            return relu(pre) * (pre > w["threshold"])
        return relu(pre) if self.config.k is None else self._top(pre, self.config.k)

    def decode(self, features: Features, x: Tensor | None = None) -> Tensor:
        """What features stand for: values as they were encoded.

        Where values are normalised before they are encoded, or skip the features in part, it takes `x`, the values
        themselves; it raises ValueError without.
        """
        w = self.weights
        if self.config.rescale_by_decoder:
            features = features / w["W_dec"].norm(dim=-1)
        out = features @ w["W_dec"] + w["b_dec"]
        needs_x = self.config.normalize != "none" or self.config.merge_heads or "W_skip" in w
        if not needs_x:
            return out
        if x is None:
            raise ValueError("this autoencoder decodes by the values that were encoded: decode(features, x)")
        flat = self._flat(x)
        if "W_skip" in w:
            out = out + flat @ w["W_skip"].t()
        _, shift, scale = self._normalized(flat)
        out = out * scale + shift
        return out.view_as(x) if self.config.merge_heads else out

    def __call__(self, x: Tensor) -> Tensor:
        """Values encoded and decoded again."""
        return self.decode(self.encode(x), x)

    def _flat(self, x: Tensor) -> Tensor:
        x = x.to(self.weights["W_dec"])
        return x.flatten(-2) if self.config.merge_heads else x

    def _normalized(self, x: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """Values as they are encoded, and what to add to and multiply by afterwards."""
        if self.config.normalize == "layer_norm":
            mean, std = x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True)
            return (x - mean) / (std + 1e-5), mean, std
        if self.config.normalize == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / self.config.d_in**0.5
            return x / scale, 0.0, scale
        return x, 0.0, 1.0

    def _top(self, pre: Tensor, k: int) -> Tensor:
        if self.config.rescale_by_decoder:
            pre = pre * self.weights["W_dec"].norm(dim=-1)
        best = pre.topk(k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, best.indices, relu(best.values))


@dataclass(eq=False)
class Spliced:
    """What an autoencoder saw in the last pass of the model that it stands in."""

    value: Any = None  # what was encoded; None before a pass
    clean: Any = None  # its features [batch pos d_sae]
    features: Any = None  # as the model went on with them, edited
    error: Any = None  # what the clean features do not explain


@contextmanager
def spliced(model: Model, sae: SAE, *, error_term: bool = True, edit: EditFeatures | None = None) -> Iterator[Spliced]:
    """Inside the `with` the model goes on with what the autoencoder makes of its value.

    With the error term, the part of the value that the features do not explain is added back: then nothing changes
    but what `edit` does to the features (Marks et al. 2024, https://arxiv.org/abs/2403.19647). What comes with the
    `with` holds the last pass's features. An autoencoder trained with TransformerLens read processed weights: give it
    `nnzoo.processing.process_weights(model)`.

    Raises KeyError where the model has no such hook point.

    >>> from nnzoo import LanguageModel
    >>> model, place = LanguageModel("nnzoo/tiny-gpt2"), "blocks.2.hook_resid_pre"
    >>> config = SAEConfig("standard", 96, 200, 96, place, place, True, "none", False)
    >>> weights = {"W_enc": torch.ones(96, 200), "b_enc": torch.zeros(200), "W_dec": torch.ones(200, 96)}
    >>> sae = SAE(config, {**weights, "b_dec": torch.zeros(96)})
    >>> with spliced(model, sae, edit=lambda features: 0 * features) as seen:
    ...     _ = model("The capital of France is")
    >>> seen.clean.shape, seen.features.count_nonzero().item()
    (torch.Size([1, 5, 200]), 0)
    """
    native = Subject(model).native
    for name in (sae.config.hook_in, sae.config.hook_out):
        if name not in native.hook_points:
            raise KeyError(f"the autoencoder reads and writes {name}, which the model does not have")
    seen = Spliced()

    def read(value: Tensor, hook: HookPoint) -> None:
        seen.value, seen.clean = value, sae.encode(value)
        features = seen.clean
        if edit is not None:
            own = features.clone()
            new = edit(own)
            features = own if new is None else new
        seen.features = features

    def write(value: Tensor, hook: HookPoint) -> Tensor:
        if sae.config.hook_in == sae.config.hook_out:
            read(value, hook)
        out = sae.decode(seen.features, seen.value)
        seen.error = value - sae.decode(seen.clean, seen.value).to(value)
        return out.to(value) + (seen.error if error_term else 0)

    hooks: Hooks = [(sae.config.hook_out, write)]
    if sae.config.hook_in != sae.config.hook_out:
        hooks = [(sae.config.hook_in, read), *hooks]
    with lock_of(model), native.hooks(hooks):
        yield seen


@exclusive
@torch.no_grad()
def feature_activations(model: Model, prompts: Prompts, sae: SAE) -> Float[Tensor, "batch pos d_sae"]:
    """The features of prompts at the place that an autoencoder reads.

    Raises KeyError where the model has no such hook point.

    >>> from nnzoo import LanguageModel
    >>> place = "blocks.2.hook_resid_pre"
    >>> config = SAEConfig("standard", 96, 200, 96, place, place, True, "none", False)
    >>> weights = {"W_enc": torch.ones(96, 200), "b_enc": torch.zeros(200), "W_dec": torch.ones(200, 96)}
    >>> sae = SAE(config, {**weights, "b_dec": torch.zeros(96)})
    >>> feature_activations(LanguageModel("nnzoo/tiny-gpt2"), "The capital of France is", sae).shape
    torch.Size([1, 5, 200])
    """
    subject = Subject(model)
    tokens = subject.read(prompts)
    name = sae.config.hook_in
    _, cache = subject.native.run_with_cache(
        tokens.ids, attention_mask=tokens.mask, names_filter=name, return_type=None
    )
    return sae.encode(cache[name])
