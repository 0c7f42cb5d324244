"""The weights in TransformerLens's shapes and names; a mixin of HookedModel.

The model keeps Hugging Face's two-dimensional layout. What stands here are views of it (or, for all layers at once,
stacks): `model.blocks[3].attn.W_Q` is [head d_model d_head], `model.W_Q` is [layer head d_model d_head]. Weights
multiply from the right: x @ W.
"""

from typing import Any

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor


class WeightViews:
    """Weights of the whole model; those of one layer are on its `attn` and `mlp`."""

    config: Any
    embed: Any
    blocks: Any
    unembed: Any

    @property
    def has_mlps(self) -> bool:
        """False in a model of attention alone."""
        return self.config.d_mlp is not None

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        return self.embed.weight

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        return self.unembed.W_U

    @property
    def b_U(self) -> Float[Tensor, "d_vocab"]:
        return self.unembed.b_U

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        return self._stack("attn", "W_Q")

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Repeated to the number of query heads; `_W_K` is as stored, [layer kv_head d_model d_head]."""
        return self._repeat(self._W_K)

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Repeated to the number of query heads; `_W_V` is as stored, [layer kv_head d_model d_head]."""
        return self._repeat(self._W_V)

    @property
    def _W_K(self) -> Float[Tensor, "layer kv_head d_model d_head"]:
        return self._stack("attn", "W_K")

    @property
    def _W_V(self) -> Float[Tensor, "layer kv_head d_model d_head"]:
        return self._stack("attn", "W_V")

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        return self._stack("attn", "W_O")

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:
        return self._stack("mlp", "W_in")

    @property
    def W_gate(self) -> Float[Tensor, "layer d_model d_mlp"]:
        return self._stack("mlp", "W_gate")

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:
        return self._stack("mlp", "W_out")

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        return self._stack("attn", "b_Q")

    @property
    def b_K(self) -> Float[Tensor, "layer head d_head"]:
        return self._repeat(self._stack("attn", "b_K"))

    @property
    def b_V(self) -> Float[Tensor, "layer head d_head"]:
        return self._repeat(self._stack("attn", "b_V"))

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        return self._stack("attn", "b_O")

    @property
    def b_in(self) -> Float[Tensor, "layer d_mlp"]:
        return self._stack("mlp", "b_in")

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        return self._stack("mlp", "b_out")

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, "d_model"]:
        """The biases b_O and b_out that were added to the residual stream before a block (or before its MLP)."""
        biases = [block.attn.b_O for block in self.blocks[: layer + mlp_input]]
        biases += [block.mlp.b_out for block in self.blocks[:layer] if include_mlp_biases and self.has_mlps]
        return sum(biases, start=self.embed.weight.new_zeros(self.config.d_model))

    def tokens_to_residual_directions(
        self, tokens: str | int | Int[Tensor, "*batch_and_pos"]
    ) -> Float[Tensor, "*place d_model"]:
        """The directions of the residual stream that raise the logits of tokens: their columns of W_U.

        [d_model] for one token, whether as text, number or tensor.
        """
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)  # type: ignore[attr-defined]  # TextMethods has it
        ids = torch.as_tensor(tokens, device=self.unembed.weight.device)
        return self.unembed.weight[ids.reshape(()) if ids.numel() == 1 else ids]

    def _stack(self, part: str, name: str) -> Tensor:
        return torch.stack([getattr(getattr(block, part), name) for block in self.blocks])

    def _repeat(self, stacked: Tensor) -> Tensor:
        group = self.config.n_heads // self.config.n_kv_heads
        return stacked if group == 1 else repeat(stacked, "layer h ... -> layer (h g) ...", g=group)
