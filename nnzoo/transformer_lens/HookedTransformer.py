"""HookedTransformer: nnzoo's models of GPT-2, LLaMA and Mistral behind TransformerLens's class of that name.

The equations are those of nnzoo.architectures. What stands here are names, defaults and order of arguments:
`model.native` is the model that does the work, with nnzoo's own API.
"""

import re
from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nnzoo.architectures.activation_cache import compact
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.norms import LayerNorm
from nnzoo.processing import process_weights
from nnzoo.transformer_lens.ActivationCache import ActivationCache
from nnzoo.transformer_lens.building import build_native
from nnzoo.transformer_lens.flags import Flags
from nnzoo.transformer_lens.generating import Generating
from nnzoo.transformer_lens.hook_points import LensPoint
from nnzoo.transformer_lens.HookedRootModule import HookedRootModule, NamesFilter
from nnzoo.transformer_lens.HookedTransformerConfig import HookedTransformerConfig
from nnzoo.transformer_lens.loading_from_pretrained import (
    cfg_of,
    cut,
    load_in_memory,
    load_named_tokenizer,
    open_pretrained,
    untie,
)
from nnzoo.transformer_lens.parts import modules_of, parts_of
from nnzoo.transformer_lens.past_key_value_caching import TransformerLensKeyValueCache
from nnzoo.transformer_lens.refactoring import refactor_factored_attn_matrices
from nnzoo.transformer_lens.weights import Weights
from nnzoo.weights.devices import usable

PARTS = ("embed", "pos_embed", "blocks", "ln_final", "unembed")
# hook points that nnzoo has and TransformerLens has not: reached by their names, left out of its lists
FURTHER = re.compile(
    r"hook_(tokens|positions)|rotary\..*|(.*\.ln.?|ln_final)\.hook_(in|out)|.*\.hook_(qkv|q_in|k_in|v_in|act|gate_in|up_in)"
)


class Output(NamedTuple):
    """What `return_type="both"` gives."""

    logits: Tensor
    loss: Tensor


class HookedTransformer(Weights, Flags, Generating, HookedRootModule):  # type: ignore[misc]  # a state dict by their names
    """A model of GPT-2's, LLaMA's or Mistral's family, by TransformerLens's names and with its defaults.

    `HookedTransformer(cfg)` makes one with new weights; `from_pretrained` reads a checkpoint.

    >>> model = HookedTransformer.from_pretrained("nnzoo/tiny-gpt2")
    >>> logits, cache = model.run_with_cache("The capital of France is")
    >>> model.to_str_tokens(logits[0, -1].argmax())
    [' Paris']
    >>> cache["blocks.1.attn.hook_pattern"].shape  # [batch head query key], with the beginning of the text
    torch.Size([1, 4, 6, 6])
    """

    native: HookedModel
    blocks: list[Any]
    embed: Any
    pos_embed: Any
    ln_final: Any
    unembed: Any

    def __init__(
        self,
        cfg: HookedTransformerConfig | dict[str, Any],
        tokenizer: Any = None,
        move_to_device: bool = True,
        default_padding_side: str | None = None,
    ) -> None:
        super().__init__()
        if isinstance(cfg, str):
            raise ValueError(f"a HookedTransformer is made of a config; HookedTransformer.from_pretrained({cfg!r})?")
        self.cfg = HookedTransformerConfig.unwrap(cfg)
        named = self.cfg.tokenizer_name
        if tokenizer is None and named is not None and self.cfg.d_vocab == -1:
            tokenizer = load_named_tokenizer(named)
        if tokenizer is not None and self.cfg.d_vocab == -1:
            self.cfg.d_vocab = self.cfg.d_vocab_out = max(tokenizer.get_vocab().values()) + 1
        native = build_native(self.cfg)
        self._adopt(native.to(usable(self.cfg.device)) if move_to_device else native)
        if self.cfg.init_weights:
            self.init_weights()
        if tokenizer is None and named is not None:
            tokenizer = partial(load_named_tokenizer, named)  # when text is first read
        if tokenizer is not None:
            self.set_tokenizer(tokenizer, default_padding_side)

    @classmethod
    def from_pretrained(
        cls,
        model_name: Any,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False,
        checkpoint_index: int | None = None,
        checkpoint_value: int | None = None,
        checkpoint_label: int | None = None,
        hf_model: Any = None,
        device: str | torch.device | None = None,
        n_devices: int = 1,
        tokenizer: Any = None,
        move_to_device: bool = True,
        fold_value_biases: bool = True,
        default_prepend_bos: bool | None = None,
        default_padding_side: str | None = None,
        dtype: torch.dtype | str = "float32",
        first_n_layers: int | None = None,
        n_ctx: int | None = None,
        **from_pretrained_kwargs: Any,
    ) -> "HookedTransformer":
        """A checkpoint's model: an alias of TransformerLens's, an id of the Hub, a folder, or one embedded in nnzoo.

        Its weights are processed (nnzoo.processing) unless the flags say otherwise: norms folded into what reads them,
        what writes into the stream and the unembedding centred, values' biases folded into those of the output. Writing
        weights are centred only where norms are LayerNorms. `hf_model` is a transformers model in memory.

        Raises NotImplementedError or TypeError, by name, for what is not followed, and the errors of nnzoo.load.
        """
        _check_followed(n_devices, checkpoint_index, checkpoint_value, checkpoint_label)
        dtype = from_pretrained_kwargs.pop("torch_dtype", None) or dtype
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        if hf_model is None:
            native = open_pretrained(model_name, from_pretrained_kwargs).load(dtype=dtype)
        else:
            native = load_in_memory(hf_model, dtype)
        native = cut(native, first_n_layers, n_ctx)
        steps = {"fold_ln": fold_ln, "center_unembed": center_unembed, "fold_value_biases": fold_value_biases}
        native = _processed(native, center_writing_weights, refactor_factored_attn_matrices, **steps)
        cfg = cfg_of(native.config, str(model_name), fold_ln=fold_ln, device=device, dtype=dtype)
        cfg.default_prepend_bos = True if default_prepend_bos is None else default_prepend_bos
        model = cls._of(native.to(usable(cfg.device)) if move_to_device else native, cfg)
        model._padding_side = default_padding_side
        if tokenizer is not None:
            model.set_tokenizer(tokenizer, default_padding_side)
        return model

    @classmethod
    def from_pretrained_no_processing(
        cls,
        model_name: Any,
        fold_ln: bool = False,
        center_writing_weights: bool = False,
        center_unembed: bool = False,
        refactor_factored_attn_matrices: bool = False,
        fold_value_biases: bool = False,
        dtype: torch.dtype | str = torch.float32,
        default_prepend_bos: bool | None = None,
        default_padding_side: str | None = None,
        **from_pretrained_kwargs: Any,
    ) -> "HookedTransformer":
        """`from_pretrained`, with the weights as they are in the checkpoint."""
        return cls.from_pretrained(
            model_name,
            fold_ln=fold_ln,
            center_writing_weights=center_writing_weights,
            center_unembed=center_unembed,
            refactor_factored_attn_matrices=refactor_factored_attn_matrices,
            fold_value_biases=fold_value_biases,
            dtype=dtype,
            default_prepend_bos=default_prepend_bos,
            default_padding_side=default_padding_side,
            **from_pretrained_kwargs,
        )

    @classmethod
    def _of(cls, native: HookedModel, cfg: HookedTransformerConfig) -> "HookedTransformer":
        model = cls.__new__(cls)
        HookedRootModule.__init__(model)
        model.cfg = cfg
        model._adopt(native)
        return model

    def _adopt(self, native: HookedModel) -> None:
        """Take a model, its parts and its hook points; those of a model before it are gone."""
        self.native = native
        for point in native.hook_points.values():
            point.__class__ = LensPoint  # the same object, with TransformerLens's methods
        vars(self).update(parts_of(native, self.cfg))
        self.setup()

    def setup(self) -> None:
        """List the parts and hook points by name."""
        points: Any = self.native.hook_points
        asked = {"hook_tokens"} if self.cfg.use_hook_tokens else set()
        self.hook_dict = {n: p for n, p in points.items() if n in asked or not FURTHER.fullmatch(n)}
        vars(self).update({n: p for n, p in self.hook_dict.items() if "." not in n})  # model.hook_embed
        self.mod_dict = {**modules_of({n: vars(self)[n] for n in PARTS if n in vars(self)}), **points}

    def __setattr__(self, name: str, value: Any) -> None:
        if name in PARTS:
            raise AttributeError(f"model.{name} cannot be replaced: the model runs its own parts. Weights can be set")
        super().__setattr__(name, value)

    # --- running -------------------------------------------------------------------------------------------------

    def forward(
        self,
        input: Any,
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        start_at_layer: int | None = None,
        tokens: Tensor | None = None,
        shortformer_pos_embed: Tensor | None = None,
        attention_mask: Tensor | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: TransformerLensKeyValueCache | None = None,
    ) -> Any:
        """Run on text, ids [batch pos], or with `start_at_layer` on the residual stream as it enters that block.

        `return_type` is "logits" [batch pos d_vocab], "loss" (mean, or with `loss_per_token` [batch pos-1]), "both" or
        None. With `stop_at_layer` comes back the stream [batch pos d_model] as it enters that block.
        """
        if shortformer_pos_embed is not None:
            raise NotImplementedError("shortformer positions are the model's own, from whichever layer it starts")
        if start_at_layer is None:
            input, attention_mask = self.tokens_and_mask(input, prepend_bos, padding_side, attention_mask)
            tokens = None
        with nullcontext() if past_kv_cache is None else past_kv_cache.running() as cache:
            out = self.native(
                input,
                return_type=return_type,
                loss_per_token=loss_per_token,
                attention_mask=attention_mask,
                cache=cache,
                stop_at_layer=stop_at_layer,
                start_at_layer=start_at_layer,
                tokens=tokens,
            )
        return Output(*out) if isinstance(out, tuple) else out

    def loss_fn(
        self, logits: Tensor, tokens: Tensor, attention_mask: Tensor | None = None, per_token: bool = False
    ) -> Tensor:
        """The cross-entropy of each next token: its mean, or [batch pos-1]."""
        return self.native.loss(logits, tokens.to(logits.device), attention_mask, per_token=per_token)

    def run_with_cache(
        self, *model_args: Any, return_cache_object: bool = True, remove_batch_dim: bool = False, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Run, and keep what passes the hook points in an ActivationCache, or with `return_cache_object=False` a dict.

        See HookedRootModule.run_with_cache for the other arguments.
        """
        out, cache = super().run_with_cache(*model_args, remove_batch_dim=remove_batch_dim, **kwargs)
        return out, cache if return_cache_object else cache.cache_dict

    def cache_of(self, values: dict[str, Tensor], names_filter: NamesFilter, remove_batch_dim: bool) -> Any:
        """What was recorded, as an ActivationCache."""
        cache = ActivationCache(values if names_filter is None else compact(values), self)
        return cache.remove_batch_dim() if remove_batch_dim else cache

    def points_of_one_name(self, name: Any) -> list[LensPoint]:
        """The hook points of a name, or of a pattern such as "blocks.*.hook_resid_pre". KeyError where none is."""
        return self.native.select(name)  # type: ignore[return-value]  # they are of that class since `_adopt`

    def every_point(self) -> Iterable[LensPoint]:
        """Every hook point of the model, nnzoo's own among them."""
        return self.native.hook_points.values()  # type: ignore[return-value]

    # --- the whole model -----------------------------------------------------------------------------------------

    def to(self, device_or_dtype: Any, print_details: bool = True) -> "HookedTransformer":  # type: ignore[override]
        """Move the model to a device, or convert it to a dtype; the config says so afterwards."""
        if isinstance(device_or_dtype, torch.dtype):
            self.cfg.dtype = device_or_dtype
        else:
            self.cfg.device = usable(device_or_dtype)
        self.native.to(device_or_dtype)
        return self

    def cuda(self, device: Any = None) -> "HookedTransformer":
        """To a GPU, the first unless another is named."""
        return self.to("cuda" if device is None else f"cuda:{device}" if isinstance(device, int) else device)

    def cpu(self) -> "HookedTransformer":
        """To the CPU."""
        return self.to("cpu")

    def process_weights_(
        self,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False,
    ) -> None:
        """Process the weights of this model, values' biases always; hooks on it are gone."""
        steps = {"fold_ln": fold_ln, "center_unembed": center_unembed, "fold_value_biases": True}
        self._process(center_writing_weights, refactor_factored_attn_matrices, **steps)

    def load_and_process_state_dict(
        self,
        state_dict: dict[str, Tensor],
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
        refactor_factored_attn_matrices: bool = False,
    ) -> None:
        """`load_state_dict`, then the processing of `from_pretrained`; hooks on the model are gone."""
        self.load_state_dict(state_dict, strict=False)
        steps = {"fold_ln": fold_ln, "center_unembed": center_unembed, "fold_value_biases": fold_value_biases}
        self._process(center_writing_weights, refactor_factored_attn_matrices, **steps)

    def _process(self, center_writing_weights: bool, refactor: bool, *, fold_ln: bool, **steps: bool) -> None:
        native = _processed(self.native, center_writing_weights, refactor, fold_ln=fold_ln, **steps)
        if fold_ln and self.cfg.normalization_type in ("LN", "RMS"):
            self.cfg.normalization_type += "Pre"
        self._adopt(native)

    @property
    def n_params_total(self) -> int:
        """The number of parameters, embeddings, norms and biases among them."""
        return sum(parameter.numel() for parameter in self.parameters())

    def load_sample_training_dataset(self, **kwargs: Any) -> None:
        """Refused: data comes from where you have it."""
        raise NotImplementedError("nnzoo downloads no data sets: load one, for instance with Hugging Face's datasets")

    def sample_datapoint(self, *args: Any, **kwargs: Any) -> None:
        """Refused: data comes from where you have it."""
        self.load_sample_training_dataset()


def _processed(native: HookedModel, center_writing_weights: bool, refactor: bool, **steps: bool) -> HookedModel:
    center = center_writing_weights and isinstance(native.ln_final, LayerNorm)  # an RMSNorm would notice the mean
    if center or any(steps.values()):
        native = process_weights(native, center_writing_weights=center, **steps)
    if refactor:
        refactor_factored_attn_matrices(native)
    return untie(native)


def _check_followed(n_devices: int, *checkpoints: int | None) -> None:
    if n_devices != 1:
        raise NotImplementedError(f"n_devices={n_devices}: a model is on one device")
    if any(checkpoint is not None for checkpoint in checkpoints):
        raise NotImplementedError("checkpoints of a training run are revisions on the Hub: pass revision=...")
