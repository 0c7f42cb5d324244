"""A HookedTransformer's weights by TransformerLens's names, whole or layer by layer."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from nnzoo.analysis.circuits import composition_scores
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.transformer_lens.FactoredMatrix import FactoredMatrix
from nnzoo.transformer_lens.initialization import INIT_MODES
from nnzoo.transformer_lens.parts import modules_of, put, weights_of

STACKED = "W_Q W_K W_V W_O W_in W_out b_Q b_K b_V b_O b_in b_out".split()  # with a layer axis
BUFFERS = ("mask", "IGNORE", "rotary_sin", "rotary_cos")  # what a state dict of TransformerLens has beside weights


class Weights:
    """What a HookedTransformer says of its weights.

    They multiply from the right, as x @ W: `W_E` [d_vocab d_model], `W_pos` [n_ctx d_model], `W_U` [d_model d_vocab],
    and of all layers `W_Q`, `W_K`, `W_V` [layer head d_model d_head], `W_O` [layer head d_head d_model], `W_in`
    [layer d_model d_mlp], `W_out` [layer d_mlp d_model] and the biases. Keys and values of grouped heads are repeated.
    """

    native: HookedModel
    cfg: Any

    def __getattr__(self, name: str) -> Any:
        if name in STACKED:
            return getattr(self.native, name)
        return super().__getattr__(name)  # type: ignore[misc]  # nn.Module has it

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        return self.native.W_E

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """AttributeError for a model with rotary positions, which has none."""
        return self.native.W_pos  # type: ignore[return-value]

    @property
    def W_E_pos(self) -> Float[Tensor, "rows d_model"]:
        """The embedding and the positions below each other: whatever can enter the stream at its start."""
        return torch.cat([self.W_E, self.W_pos])

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        return self.native.W_U

    @property
    def b_U(self) -> Float[Tensor, "d_vocab"]:
        return self.native.b_U

    @property
    def W_gate(self) -> Float[Tensor, "layer d_model d_mlp"] | None:
        return self.native.W_gate if self.cfg.gated_mlp else None

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_K^T of every head, [layer head d_model d_model]."""
        return FactoredMatrix(self.native.W_Q, self.native.W_K.transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of every head, [layer head d_model d_model]."""
        return FactoredMatrix(self.native.W_V, self.native.W_O)

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, "d_model"]:
        """The biases that were added to the stream before a block, or before its MLP."""
        return self.native.accumulated_bias(layer, mlp_input, include_mlp_biases)

    def tokens_to_residual_directions(self, tokens: Any) -> Float[Tensor, "*place d_model"]:
        """The directions of the stream that raise the logits of tokens, their columns of W_U; [d_model] for one."""
        return self.native.tokens_to_residual_directions(tokens)

    def all_composition_scores(self, mode: str) -> Float[Tensor, "layer head later later_head"]:
        """How much a head of the first pair of axes is read by one of the second, through "Q", "K" or "V"."""
        if mode not in ("Q", "K", "V"):
            raise ValueError(f"mode is 'Q', 'K' or 'V', not {mode!r}")
        layers, heads = self.cfg.n_layers, self.cfg.n_heads
        return composition_scores(self.native, mode.lower()).values.view(layers, heads, layers, heads)

    def all_head_labels(self) -> list[str]:
        """["L0H0", "L0H1", ...]."""
        return [f"L{layer}H{head}" for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]

    # --- as a module ---------------------------------------------------------------------------------------------

    @property
    def _parts(self) -> dict[str, Any]:
        return {n: vars(self)[n] for n in ("embed", "pos_embed", "blocks", "ln_final", "unembed") if n in vars(self)}

    def named_parameters(self, prefix: str = "", *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """What is trained.

        By TransformerLens's names in a model of a config, whose weights are stored in its shapes; by nnzoo's in one of
        GPT-2, LLaMA or Mistral, which stores them as Hugging Face does.
        """
        weights = weights_of(self._parts)
        if not all(isinstance(weight, nn.Parameter) for weight in weights.values()):
            yield from self.native.named_parameters(prefix, *args, **kwargs)
            return
        for name, weight in weights.items():
            yield f"{prefix}.{name}" if prefix else name, weight  # type: ignore[misc]

    def init_weights(self) -> None:
        """Draw all weights anew, as `cfg.init_mode` says, from `cfg.seed` if there is one; biases stay."""
        if self.cfg.seed is not None:
            torch.manual_seed(self.cfg.seed)
        draw = INIT_MODES[self.cfg.init_mode](self.cfg.initializer_range)
        for name, weight in weights_of(self._parts).items():
            if "W_" in name:
                new = torch.empty(weight.shape, dtype=weight.dtype)
                draw(name, new)
                put(name, weight, new)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Every weight by TransformerLens's name, as views of the model's own, detached.

        >>> from nnzoo.transformer_lens import HookedTransformer
        >>> list(HookedTransformer.from_pretrained("nnzoo/tiny-gpt2").state_dict())[:3]
        ['embed.W_E', 'pos_embed.W_pos', 'blocks.0.attn.W_Q']
        """
        return {name: value.detach() for name, value in weights_of(self._parts).items()}

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Copy weights by TransformerLens's names into the model, and say which were missing and which unexpected.

        Raises RuntimeError where any was, unless `strict` is False; ValueError for one that the model cannot hold.
        """
        modules, expected = modules_of(self._parts), weights_of(self._parts)
        given = {name: v for name, v in state_dict.items() if name.rpartition(".")[2] not in BUFFERS}
        missing, unexpected = [n for n in expected if n not in given], [n for n in given if n not in expected]
        if strict and (missing or unexpected):
            raise RuntimeError(
                f"the state dict lacks {missing[:5]}, and has {unexpected[:5]}, which this model has not"
            )
        for name in expected.keys() & given.keys():
            path, _, weight = name.rpartition(".")
            put(name, getattr(modules[path], weight), given[name])
        return _IncompatibleKeys(missing, unexpected)
