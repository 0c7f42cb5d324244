"""Rotary position embedding (RoFormer, https://arxiv.org/abs/2104.09864) and the ways its frequencies are stretched.

A query or key of width d_head is read as d_head / 2 pairs; the pair at index i is turned by the angle
position * frequency[i], so that a query and a key see only how far apart they stand.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnzoo.architectures.hooks import HookPoint
from nnzoo.architectures.modules import Module


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Plain rotary embedding: frequencies theta ** (-2 i / d_head)."""

    theta: float

    def frequencies(self, d_head: int) -> Float[Tensor, "half"]:
        """Radians a position, for each pair."""
        # the exponent is computed in float32, as transformers does: in float64 the last bits would differ
        return 1.0 / self.theta ** (torch.arange(0, d_head, 2, dtype=torch.float32, device="cpu") / d_head)

    def amplitude(self) -> float:
        """What cos and sin are multiplied by."""
        return 1.0

    def reach(self, n_ctx: int) -> int:
        """How many positions a model trained on `n_ctx` may use."""
        return n_ctx


@dataclass(frozen=True, kw_only=True)
class LinearRope(Rope):
    """Positions divided by `factor` (https://arxiv.org/abs/2306.15595)."""

    factor: float

    def reach(self, n_ctx: int) -> int:
        return int(n_ctx * self.factor)  # checkpoints name the length before scaling

    def frequencies(self, d_head: int) -> Float[Tensor, "half"]:
        return super().frequencies(d_head) / self.factor


@dataclass(frozen=True, kw_only=True)
class DynamicRope(Rope):
    """Theta grows with the prompt once it is longer than `n_ctx` (dynamic NTK scaling, bloc97 and emozilla 2023)."""

    factor: float
    n_ctx: int

    def reach(self, n_ctx: int) -> int:
        return int(n_ctx * self.factor)

    def frequencies_at(self, d_head: int, length: Int[Tensor, "batch"]) -> Float[Tensor, "batch 1 half"]:
        """One row of frequencies a prompt: each prompt is stretched by its own length, not by its neighbours'."""
        stretch = self.factor * length / self.n_ctx - (self.factor - 1)
        theta = self.theta * torch.where(length > self.n_ctx, stretch, 1.0) ** (d_head / (d_head - 2))
        exponent = torch.arange(0, d_head, 2, dtype=torch.float32, device=length.device) / d_head
        return 1.0 / theta[:, None, None] ** exponent


@dataclass(frozen=True, kw_only=True)
class Llama3Rope(Rope):
    """Slow frequencies divided by `factor`, fast ones kept, a blend between (LLaMA 3.1).

    Paper: https://arxiv.org/abs/2407.21783
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_n_ctx: int

    def frequencies(self, d_head: int) -> Float[Tensor, "half"]:
        plain = super().frequencies(d_head)
        turns = self.original_n_ctx / (2 * math.pi / plain)  # how often a pair turns round in the original context
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blended = (1 - blend) * plain / self.factor + blend * plain
        slow, fast = turns < self.low_freq_factor, turns > self.high_freq_factor
        return torch.where(slow, plain / self.factor, torch.where(fast, plain, blended))


@dataclass(frozen=True, kw_only=True)
class YarnRope(Rope):
    """Slow frequencies divided by `factor`, fast ones kept, a ramp between, and louder cos and sin.

    Paper: https://arxiv.org/abs/2309.00071
    """

    factor: float
    beta_fast: float  # pairs that turn more often than this in the original context are kept
    beta_slow: float  # those that turn less often are divided
    original_n_ctx: int
    attention_factor: float
    truncate: bool

    def reach(self, n_ctx: int) -> int:
        return max(n_ctx, int(self.original_n_ctx * self.factor))

    def frequencies(self, d_head: int) -> Float[Tensor, "half"]:
        exponent = torch.arange(0, d_head, 2, dtype=torch.float32, device="cpu") / d_head
        wavelength = self.theta**exponent
        keep = 1 - self._ramp(d_head)
        return 1.0 / (self.factor * wavelength) * (1 - keep) + 1.0 / wavelength * keep

    def amplitude(self) -> float:
        return self.attention_factor

    def _ramp(self, d_head: int) -> Float[Tensor, "half"]:
        low, high = self._pair_turning(self.beta_fast, d_head), self._pair_turning(self.beta_slow, d_head)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, d_head - 1)
        if low == high:
            high += 0.001  # a step, not a division by zero
        pair = torch.arange(d_head // 2, dtype=torch.float32, device="cpu")
        return ((pair - low) / (high - low)).clamp(0, 1)

    def _pair_turning(self, turns: float, d_head: int) -> float:
        return d_head * math.log(self.original_n_ctx / (turns * 2 * math.pi)) / (2 * math.log(self.theta))


Angles = tuple[Float[Tensor, "batch pos d_head"], Float[Tensor, "batch pos d_head"]]  # their cosines and sines
Rotation = tuple[Float[Tensor, "batch pos 1 d_head"], Float[Tensor, "batch pos 1 d_head"]]  # ready for every head


class Rotary(Module):
    """The cosines and sines of a pass: computed once, used by every block."""

    def __init__(self, rope: Rope, d_head: int) -> None:
        super().__init__()
        self.rope = rope
        self.d_head = d_head
        # not a buffer: it must stay float32 when the model is cast, and real when the model is built on meta
        self._frequencies = {torch.device("cpu"): rope.frequencies(d_head)}
        self.hook_cos = HookPoint("batch pos d_head")
        self.hook_sin = HookPoint("batch pos d_head")

    def forward(self, positions: Int[Tensor, "batch pos"], dtype: torch.dtype) -> Angles:
        angles = positions[..., None].float() * self.frequencies(positions)
        angles = torch.cat([angles, angles], dim=-1)
        amplitude = self.rope.amplitude()
        cos, sin = angles.cos() * amplitude, angles.sin() * amplitude
        return self.hook_cos(cos.to(dtype)), self.hook_sin(sin.to(dtype))

    def frequencies(self, positions: Int[Tensor, "batch pos"]) -> Float[Tensor, "*batch half"]:
        if isinstance(self.rope, DynamicRope):
            return self.rope.frequencies_at(self.d_head, positions.amax(dim=-1) + 1)
        if positions.device not in self._frequencies:
            self._frequencies[positions.device] = self._frequencies[torch.device("cpu")].to(positions.device)
        return self._frequencies[positions.device]


def rotation(cos: Float[Tensor, "batch pos d_head"], sin: Float[Tensor, "batch pos d_head"]) -> Rotation:
    """The angles as `rotate` wants them: the same for all heads, with the sign that each half takes its sine with."""
    first, second = sin.chunk(2, dim=-1)
    return cos[:, :, None], torch.cat([-first, second], dim=-1)[:, :, None]


def rotate(x: Float[Tensor, "batch pos head d_head"], by: Rotation) -> Float[Tensor, "batch pos head d_head"]:
    """Turn every pair (i, i + d_head / 2) of x by its position's angle."""
    cos, sin = by
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin
