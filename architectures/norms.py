"""LayerNorm and RMSNorm, with hook points for what happens inside.

Somebody at `hook_scale` or `hook_normalized` puts the norm on its explicit path; else it runs fused.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nnzoo.architectures.hooks import HookPoint
from nnzoo.architectures.modules import Module
from nnzoo.architectures.parameters import quick


@quick("weight")
class Norm(Module):
    """What the two norms share: the hook points, and the choice between the fused and the explicit path."""

    def __init__(self, d_model: int, eps: float, axis: str = "d_model") -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.hook_in = HookPoint(f"batch pos {axis}")
        self.hook_scale = HookPoint("batch pos 1")
        self.hook_normalized = HookPoint(f"batch pos {axis}")
        self.hook_out = HookPoint(f"batch pos {axis}")

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        x = self.hook_in(x)
        if self.hook_scale.hooks or self.hook_normalized.hooks:
            return self.hook_out(self.explicit(x))
        return self.hook_out(self.fused(x))

    def rescaled(
        self, normalized: Float[Tensor, "batch pos d_model"], scale: Float[Tensor, "batch pos 1"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """What was divided by `scale`, divided by what stands at `hook_scale` instead; looking moves no bit of it."""
        new = self.hook_scale(scale)
        if new is scale and not scale.requires_grad:
            return normalized
        return normalized * (scale / new)

    def explicit(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        raise NotImplementedError

    def fused(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        raise NotImplementedError


@quick("bias")
class LayerNorm(Norm):
    """Centre, divide by the standard deviation, then scale and shift (https://arxiv.org/abs/1607.06450)."""

    def __init__(self, d_model: int, eps: float, axis: str = "d_model") -> None:
        super().__init__(d_model, eps, axis)
        self.bias = nn.Parameter(torch.zeros(d_model))

    def explicit(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        wide = x.float() if x.dtype.itemsize < 4 else x  # as the fused kernel does: bfloat16 statistics lose two bits
        if self.hook_scale.hooks and wide.requires_grad and torch.is_grad_enabled():
            centred = wide - wide.mean(dim=-1, keepdim=True)  # step by step: what a hook makes of the scale is followed
            inverse = (centred.pow(2).mean(dim=-1, keepdim=True) + self.eps).rsqrt()
            normalized = centred * inverse
        else:
            # the kernel beneath layer_norm, which gives its statistics back: var_mean alone takes 15 times as long
            normalized, _, inverse = torch.native_layer_norm(wide, self.weight.shape, None, None, self.eps)
        normalized = self.rescaled(normalized.to(x.dtype), (1 / inverse).to(x.dtype))
        return torch.addcmul(self.bias, self.hook_normalized(normalized), self.weight)

    def fused(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(Norm):
    """Divide by the root mean square, then scale (https://arxiv.org/abs/1910.07467).

    The statistics are taken in float32 whatever the model's dtype, as LLaMA was trained, float64 included.
    """

    def explicit(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        wide = x.float()
        inverse = (wide.pow(2).mean(dim=-1, keepdim=True) + self.eps).rsqrt()
        normalized = self.rescaled((wide * inverse).to(x.dtype), (1 / inverse).to(x.dtype))
        return self.weight * self.hook_normalized(normalized)

    def fused(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        single = x.dtype is torch.float32  # then there is nothing to convert, and asking takes time all the same
        wide = x if single else x.float()
        normalized = wide * (wide.pow(2).mean(dim=-1, keepdim=True) + self.eps).rsqrt()
        return self.weight * (normalized if single else normalized.to(x.dtype))


class NoNorm(Module):
    """Nothing, where other models have a norm."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.hook_in = HookPoint("batch pos d_model")
        self.hook_out = HookPoint("batch pos d_model")

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return self.hook_out(self.hook_in(x))

    def fused(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return x
