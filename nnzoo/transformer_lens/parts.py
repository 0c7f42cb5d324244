"""The parts of a HookedTransformer by TransformerLens's names: views of the native model's parts, which do the work.

`model.blocks[3].attn.W_Q` is a view of the weights, `model.blocks[3].attn.hook_q` the hook point itself, and
`model.ln_final(x)` or `model.unembed(x)` runs the part.
"""

from collections.abc import Iterator
from typing import Any

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.transformer_lens.FactoredMatrix import FactoredMatrix

# in TransformerLens's order, in which new ones are drawn
MATRICES = ("W_Q", "W_O", "b_Q", "b_O", "W_K", "W_V", "b_K", "b_V")
MLP_MATRICES = ("W_in", "b_in", "W_out", "b_out", "W_gate")


class Part:
    """A part of the model; what it does not have itself is the native part's.

    A weight that is assigned is copied into the model: `part.W_O = value`, or `part.W_O[0] = value` in place.
    """

    def __new__(cls, *made_of: Any) -> "Part":
        if made_of and not isinstance(made_of[0], nn.Module):
            raise TypeError(
                f"{cls.__name__} is a part of a model: HookedTransformer(cfg) makes a model with all of them"
            )
        return super().__new__(cls)

    def __init__(self, native: nn.Module, cfg: Any) -> None:
        vars(self).update(native=native, cfg=cfg)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "native" not in vars(self):
            raise AttributeError(name)
        return getattr(self.native, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith(("W_", "b_", "w", "b", "_W_", "_b_")) or not isinstance(getattr(self, name), Tensor):
            raise AttributeError(
                f"{type(self).__name__}.{name} cannot be replaced: the model runs its own parts. Weights can be set, "
                "and a hook can give back what another module computes, at hook_mlp_out for example"
            )
        put(name, getattr(self, name), value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.native(*args, **kwargs)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of this part."""
        return self.native.parameters()

    def state_dict(self) -> dict[str, Tensor]:
        """The weights of this part by TransformerLens's names, as views of the model's own, detached."""
        return {name.lstrip("."): value.detach() for name, value in weights_of({"": self}).items()}

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self.native!r}"


class Embed(Part):
    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        return self.native.weight


class PosEmbed(Part):
    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        return self.native.weight

    def __call__(
        self, tokens: Int[Tensor, "batch pos"], past_kv_pos_offset: int = 0, attention_mask: Tensor | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        if attention_mask is not None:
            raise NotImplementedError("padding is counted by the model itself: run it, and read hook_pos_embed")
        places = torch.arange(past_kv_pos_offset, past_kv_pos_offset + tokens.shape[-1], device=self.W_pos.device)
        return repeat(self.W_pos[places], "p d -> b p d", b=tokens.shape[0])


class Unembed(Part):
    pass


class LayerNorm(Part):
    """A LayerNorm or RMSNorm, or nothing; `w` and `b` are there unless they were folded into what reads it."""

    def __getattr__(self, name: str) -> Any:
        if name not in ("w", "b"):
            return super().__getattr__(name)
        if not self.trained:
            raise AttributeError(f"this norm has no {name}: it was folded into the weights that read it (fold_ln)")
        return getattr(self.native, {"w": "weight", "b": "bias"}[name])

    @property
    def trained(self) -> bool:
        return not str(self.cfg.normalization_type).endswith("Pre")


class Attention(Part):
    """Weights [head d_model d_head], of keys and values one for each query head; `_W_K`, `_W_V` as they are stored."""

    @property
    def W_K(self) -> Float[Tensor, "head d_model d_head"]:
        return self._for_each_query_head("W_K")

    @property
    def W_V(self) -> Float[Tensor, "head d_model d_head"]:
        return self._for_each_query_head("W_V")

    @property
    def b_K(self) -> Float[Tensor, "head d_head"]:
        return self._for_each_query_head("b_K")

    @property
    def b_V(self) -> Float[Tensor, "head d_head"]:
        return self._for_each_query_head("b_V")

    @property
    def _W_K(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return self.native.W_K

    @property
    def _W_V(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return self.native.W_V

    @property
    def _b_K(self) -> Float[Tensor, "kv_head d_head"]:
        return self.native.b_K

    @property
    def _b_V(self) -> Float[Tensor, "kv_head d_head"]:
        return self.native.b_V

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_K^T of every head."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of every head."""
        return FactoredMatrix(self.W_V, self.W_O)

    def __call__(self, query_input: Tensor, key_input: Tensor, value_input: Tensor, **others: Any) -> Tensor:
        """What the layer adds to the stream, for normed inputs [batch pos d_model], all three the same tensor."""
        if key_input is not query_input or value_input is not query_input or others:
            raise NotImplementedError(
                "a layer by itself takes one input for queries, keys and values, without a mask or a cache. To change "
                "what one of them reads, listen to hook_q_input, hook_k_input or hook_v_input"
            )
        span = self.root.span(query_input.new_zeros(query_input.shape[:2], dtype=torch.long))
        return self.native(query_input, {}, span)

    def _for_each_query_head(self, name: str) -> Tensor:
        weights = getattr(self.native, name)
        group = self.native.n_heads // self.native.n_kv_heads
        return weights if group == 1 else weights.repeat_interleave(group, dim=0)


class ActivationNorm(LayerNorm):
    """The norm behind an activation such as "solu_ln"."""

    @property
    def trained(self) -> bool:
        return self.cfg.normalization_type == "LN"  # as there: without weights in a model with other norms, or none


class MLP(Part):
    def __init__(self, native: Any, cfg: Any) -> None:
        super().__init__(native, cfg)
        if hasattr(native, "ln"):
            vars(self).update(ln=ActivationNorm(native.ln, cfg))


class TransformerBlock(Part):
    def __init__(self, native: Any, cfg: Any, root: HookedModel) -> None:
        super().__init__(native, cfg)
        attn = Attention(native.attn, cfg)
        vars(attn).update(root=root)
        vars(self).update(root=root, ln1=LayerNorm(native.ln1, cfg), attn=attn)
        if root.has_mlps:
            vars(self).update(ln2=LayerNorm(native.ln2, cfg), mlp=MLP(native.mlp, cfg))

    def __call__(
        self, resid_pre: Float[Tensor, "batch pos d_model"], attention_mask: Tensor | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after this block, for what enters it."""
        places = resid_pre.new_zeros(resid_pre.shape[:2], dtype=torch.long)
        mask = None if attention_mask is None else attention_mask.bool()
        return self.native(resid_pre, self.root.span(places, mask))


def parts_of(native: HookedModel, cfg: Any) -> dict[str, Any]:
    """The parts of a model, by their names on a HookedTransformer."""
    model: Any = native
    parts: dict[str, Any] = {"embed": Embed(model.embed, cfg)}
    if hasattr(model, "pos_embed"):
        parts["pos_embed"] = PosEmbed(model.pos_embed, cfg)
    parts["blocks"] = [TransformerBlock(block, cfg, native) for block in model.blocks]
    return {**parts, "ln_final": LayerNorm(model.ln_final, cfg), "unembed": Unembed(model.unembed, cfg)}


def modules_of(parts: dict[str, Any]) -> dict[str, Any]:
    """Every part by its dotted name: "blocks.0.attn"."""
    found: dict[str, Any] = {}
    for path, part in parts.items():
        if isinstance(part, list):
            found |= modules_of({f"{path}.{i}": block for i, block in enumerate(part)})
        else:
            inner = {f"{path}.{name}": one for name, one in vars(part).items() if isinstance(one, Part)}
            found |= {path: part, **modules_of(inner)}
    return found


def weights_of(parts: dict[str, Any]) -> dict[str, Tensor]:
    """Every weight by TransformerLens's name, as a view of the model's own."""
    found = {}
    for path, part in modules_of(parts).items():
        for name in _names(part):
            found[f"{path}.{name}"] = getattr(part, name)
    return found


def _names(part: Any) -> list[str]:
    if isinstance(part, LayerNorm):
        return [name[0] for name, _ in part.native.named_parameters()] if part.trained else []
    if isinstance(part, Attention):
        grouped = part.cfg.n_key_value_heads is not None
        return [f"_{name}" if grouped and name[-1] in "KV" else name for name in MATRICES]
    if isinstance(part, MLP):
        return [name for name in MLP_MATRICES if hasattr(part.native, name)]
    return {Embed: ["W_E"], PosEmbed: ["W_pos"], Unembed: ["W_U", "b_U"]}.get(type(part), [])


@torch.no_grad()
def put(name: str, view: Tensor, value: Any) -> None:
    """Copy a value into a weight. Raises ValueError for another shape, or where the model has no such weight."""
    value = torch.as_tensor(value)
    if view.shape != value.shape:
        raise ValueError(f"{name} is {list(view.shape)}, not {list(value.shape)}")
    if isinstance(view if view._base is None else view._base, nn.Parameter):
        view.copy_(value)
    elif view.any() or value.any():
        raise ValueError(
            f"{name} is computed from the model's weights, and cannot be set: keys and values of grouped heads are "
            "_W_K, _W_V, _b_K, _b_V, and a bias that the model does not have stays 0"
        )
