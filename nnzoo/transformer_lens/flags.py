"""The flags of a HookedTransformer: what a cache without a filter holds. A hook runs where it is put, without any."""

from typing import Any

from nnzoo.transformer_lens.hook_points import LensPoint

# hook points that a cache without a filter has only if a field of the config says so
FLAGS = {
    "hook_result": "use_attn_result",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_attn_in": "use_attn_in",
    "hook_mlp_in": "use_hook_mlp_in",
    "hook_tokens": "use_hook_tokens",
}


class Flags:
    """Which hook points are switched on."""

    cfg: Any
    hook_dict: dict[str, LensPoint]

    def cached_points(self) -> list[LensPoint]:
        """Those that TransformerLens has too, without what a flag of the config switches on."""
        off = {ending for ending, flag in FLAGS.items() if not getattr(self.cfg, flag)}
        return [point for name, point in self.hook_dict.items() if name.rpartition(".")[2] not in off]

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Whether a cache without a filter has every head's `hook_result`; asked by name it is there anyway."""
        self.cfg.use_attn_result = use_attn_result

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """Whether a cache without a filter has `hook_q_input`, `hook_k_input` and `hook_v_input`."""
        self.cfg.use_split_qkv_input = use_split_qkv_input

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """Whether a cache without a filter has `hook_attn_in`."""
        self.cfg.use_attn_in = use_attn_in

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """Whether a cache without a filter has `hook_mlp_in`."""
        self.cfg.use_hook_mlp_in = use_hook_mlp_in

    def set_ungroup_grouped_query_attention(self, ungroup_grouped_query_attention: bool) -> None:
        """Refused where keys and values are grouped: their hook points have one head for each group."""
        if ungroup_grouped_query_attention and self.cfg.n_key_value_heads is not None:
            raise NotImplementedError(
                "keys and values stay grouped: hook_k and hook_v are [batch pos kv_head d_head]. What one query head "
                "makes of them stands at hook_attn_scores and hook_z; W_K and W_V have one for each"
            )
