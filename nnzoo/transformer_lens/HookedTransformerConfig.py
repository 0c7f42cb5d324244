"""HookedTransformerConfig: a model's sizes by TransformerLens's names, with its defaults.

`model.cfg` of a loaded model is one; you make one for a small model of your own. Every field that TransformerLens has
is here, so that its users' dicts are taken; what no family of nnzoo has is refused by name when a model is built.
"""

import difflib
import math
import pprint
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any

import numpy as np
import torch

from nnzoo.architectures.toy import TOY_ACTIVATIONS


def _naming_what_is_no_field(cls: Any) -> Any:
    """A dataclass whose constructor says which field was most likely meant by one that there is not."""
    init: Callable[..., None] = cls.__init__
    known = [field.name for field in fields(cls)]

    @wraps(init)
    def checked(self: Any, *args: Any, **given: Any) -> None:
        for name in sorted(given.keys() - known):
            near = difflib.get_close_matches(name, known, n=2)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise TypeError(f"{cls.__name__} has no field {name!r}{hint}")
        init(self, *args, **given)

    cls.__init__ = checked
    return cls


@_naming_what_is_no_field
@dataclass(repr=False)
class HookedTransformerConfig:
    """The sizes and choices of a model. Raises TypeError, with the nearest name, for a field that there is not.

    >>> cfg = HookedTransformerConfig(d_model=64, d_head=16, n_layers=2, n_ctx=32, d_vocab=100, act_fn="gelu_new")
    >>> cfg.n_heads, cfg.d_mlp, cfg.default_prepend_bos
    (4, 256, True)
    """

    d_model: int
    d_head: int
    n_layers: int
    n_ctx: int
    n_heads: int = -1  # -1: d_model // d_head
    d_mlp: int | None = None  # None: 4 * d_model
    d_vocab: int = -1  # -1: what the tokenizer has
    device: Any = None  # None: a GPU where there is one
    use_attn_result: bool = False  # a cache without a filter has hook_result; asked by name it is there anyway
    use_split_qkv_input: bool = False  # the same for hook_q_input, hook_k_input, hook_v_input
    default_prepend_bos: bool = True
    positional_embedding_type: str = "standard"
    n_key_value_heads: int | None = None
    attn_only: bool = False
    gated_mlp: bool = False
    uses_rms_norm: bool = False
    eps: float = 1e-5
    layer_norm_folding: bool = False
    act_fn: str | None = "relu"
    normalization_type: str | None = "LN"
    num_experts: int | None = None
    experts_per_token: int | None = None
    final_rms: bool = False
    dtype: torch.dtype = torch.float32
    model_name: str = "custom"
    use_attn_scale: bool = True
    attn_scale: float = -1.0  # -1: sqrt(d_head)
    use_hook_mlp_in: bool = False
    use_attn_in: bool = False
    use_qk_norm: bool = False
    clip_qkv: float | None = None
    use_logn_attn: bool = False
    train_seq_length: int | None = None
    use_dynamic_ntk_rope: bool = False
    use_local_attn: bool = False
    ungroup_grouped_query_attention: bool = False
    original_architecture: str | None = None
    from_checkpoint: bool = False
    checkpoint_index: int | None = None
    checkpoint_label_type: str | None = None
    checkpoint_value: int | None = None
    tokenizer_name: str | None = None
    window_size: int | None = None
    attn_types: list[str] | None = None
    init_mode: str = "gpt2"
    n_devices: int = 1
    attention_dir: str = "causal"
    seed: int | None = None
    initializer_range: float = -1.0  # -1: 0.8 / sqrt(d_model)
    init_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    d_vocab_out: int = -1  # -1: d_vocab
    parallel_attn_mlp: bool = False
    rotary_dim: int | None = None  # None: d_head, where positions are rotary
    n_params: int | None = None  # of the weights in attention and MLPs; counted here
    use_hook_tokens: bool = False
    tokenizer_prepends_bos: bool | None = None
    post_embedding_ln: bool = False
    rotary_base: float | int = 10000
    rotary_base_local: float | int | None = None
    rotary_scaling_factor: float = 1.0
    trust_remote_code: bool = False
    rotary_adjacent_pairs: bool = False
    load_in_4bit: bool = False
    quantization_method: str | None = None
    relative_attention_max_distance: int | None = None
    relative_attention_num_buckets: int | None = None
    decoder_start_token_id: int | None = None
    tie_word_embeddings: bool = False
    use_normalization_before_and_after: bool = False
    attn_scores_soft_cap: float = -1.0
    output_logits_soft_cap: float = -1.0
    use_NTK_by_parts_rope: bool = False
    NTK_by_parts_low_freq_factor: float = 1.0
    NTK_by_parts_high_freq_factor: float = 4.0
    NTK_by_parts_factor: float = 8.0
    NTK_original_ctx_len: int = 8192
    use_yarn_rope: bool = False
    yarn_factor: float = 1.0
    yarn_attention_factor: float = 1.0
    yarn_beta_fast: float = 32.0
    yarn_beta_slow: float = 1.0
    yarn_original_max_position_embeddings: int = 4096
    yarn_truncate: bool = True
    yarn_global_attn_only: bool = False
    use_attention_sinks: bool = False
    norm_topk_prob: bool = False

    def __post_init__(self) -> None:
        if self.n_heads == -1:
            if self.d_model % self.d_head:
                raise ValueError(f"d_model={self.d_model} is no multiple of d_head={self.d_head}: say n_heads=")
            self.n_heads = self.d_model // self.d_head
        self.d_mlp = 4 * self.d_model if self.d_mlp is None else self.d_mlp
        self.d_vocab_out = self.d_vocab if self.d_vocab_out == -1 else self.d_vocab_out
        self._check()
        if self.seed is not None:
            self.set_seed_everywhere(self.seed)
        self._settle()

    def _check(self) -> None:
        if self.use_local_attn and (self.window_size is None or self.attn_types is None):
            raise ValueError("use_local_attn needs window_size and attn_types")
        if not self.attn_only and self.act_fn not in TOY_ACTIVATIONS:
            raise ValueError(f"act_fn={self.act_fn!r} is none of {', '.join(TOY_ACTIVATIONS)}")
        if not isinstance(self.default_prepend_bos, bool):
            raise ValueError(f"default_prepend_bos is True or False, not {self.default_prepend_bos!r}")

    def _settle(self) -> None:
        if self.device is None:
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.initializer_range < 0:
            self.initializer_range = 0.8 / math.sqrt(self.d_model) if self.init_mode == "gpt2" else 1.0
        if self.use_attn_scale and self.attn_scale == -1.0:
            self.attn_scale = math.sqrt(self.d_head)
        if self.positional_embedding_type == "rotary" and self.rotary_dim is None:
            self.rotary_dim = self.d_head
        neurons = 0 if self.attn_only else (self.d_mlp or 0) * (2 + self.gated_mlp)
        self.n_params = self.n_layers * self.d_model * (4 * self.d_head * self.n_heads + neurons)

    @classmethod
    def unwrap(cls, config: "HookedTransformerConfig | Mapping[str, Any]") -> "HookedTransformerConfig":
        """A config of what may be a dict."""
        return config if isinstance(config, cls) else cls.from_dict(config)  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> "HookedTransformerConfig":
        """A config of a dict of fields."""
        return cls(**config_dict)

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dict, this config's own."""
        return vars(self)

    def set_seed_everywhere(self, seed: int) -> None:
        """Seed torch, Python and numpy."""
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)

    def is_layer_norm_activation(self) -> bool:
        """Whether the activation has a norm behind it, as "solu_ln" has."""
        return self.act_fn is not None and self.act_fn.endswith("_ln")

    def __repr__(self) -> str:
        return f"HookedTransformerConfig:\n{pprint.pformat(self.to_dict())}"
