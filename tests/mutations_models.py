"""Mistakes to plant in the models."""

from mutation import Mutation

ACTIVATION = [
    Mutation(
        "exact_gelu_for_tanh", "activations.py", '"gelu_new": partial(F.gelu, approximate="tanh")', '"gelu_new": F.gelu'
    ),
    Mutation("tanh_gelu_for_exact", "activations.py", '"gelu": F.gelu', '"gelu": partial(F.gelu, approximate="tanh")'),
    Mutation("silu_for_relu", "activations.py", '"relu": F.relu', '"relu": F.silu'),
    Mutation("gelu_for_silu", "activations.py", '"silu": F.silu', '"silu": F.gelu'),
]
NORM = [
    Mutation("layer_norm_eps", "norms.py", "self.weight, self.bias, self.eps)", "self.weight, self.bias, 1e-5)"),
    Mutation("layer_norm_bias", "norms.py", "self.weight, self.bias, self.eps)", "self.weight, None, self.eps)"),
    Mutation("layer_norm_explicit_eps", "norms.py", "None, None, self.eps)", "None, None, 1e-5)"),
    Mutation("layer_norm_explicit_bias", "norms.py", "torch.addcmul(self.bias, ", "torch.addcmul(self.bias * 0, "),
    Mutation(
        "rms_norm_eps",
        "norms.py",
        "= wide * (wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)",
        "= wide * (wide.pow(2).mean(dim=-1, keepdim=True) + 1e-6)",
    ),
    Mutation(
        "rms_norm_explicit_eps",
        "norms.py",
        "= (wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)",
        "= (wide.pow(2).mean(dim=-1, keepdim=True) + 1e-6)",
    ),
    Mutation("rms_norm_in_the_models_dtype", "norms.py", "wide = x if single else x.float()", "wide = x"),
    Mutation("norm_scale_inverted", "norms.py", "(1 / inverse)", "inverse"),
    Mutation("normalized_on_the_fused_path", "norms.py", " or self.hook_normalized.hooks", ""),
    Mutation("norm_always_explicit", "norms.py", "if self.hook_scale.hooks or", "if True or"),
]
GPT2 = [
    Mutation("gpt2_scale_without_sqrt", "gpt2.py", "config.d_head**-0.5 if", "config.d_head**-1.0 if"),
    Mutation("gpt2_unscaled_ignored", "gpt2.py", "if config.scale_scores else 1.0", "if True else 1.0"),
    Mutation("gpt2_layers_counted_from_2", "gpt2.py", "self.scale /= layer + 1", "self.scale /= layer + 2"),
    Mutation("gpt2_layer_scale_ignored", "gpt2.py", "if config.scale_by_layer:", "if False:"),
    Mutation("gpt2_qkv_bias", "gpt2.py", "self.hook_qkv(self.qkv(x))", "self.hook_qkv(x @ self.qkv.weight)"),
    Mutation("gpt2_up_bias", "gpt2.py", "self.hook_pre(self.up(x))", "self.hook_pre(x @ self.up.weight)"),
    Mutation("gpt2_down_bias", "gpt2.py", "return self.down(neurons)", "return neurons @ self.down.weight"),
    Mutation("gpt2_ln1_for_ln2", "gpt2.py", "self.mlp(self.ln2(", "self.mlp(self.ln1("),
    Mutation("gpt2_no_final_norm", "gpt2.py", "self.unembed(self.ln_final(x))", "self.unembed(x)"),
    Mutation("gpt2_keys_before_queries", "gpt2.py", "q, k, v = qkv.view", "k, q, v = qkv.view"),
    Mutation(
        "gpt2_mlp_reads_the_attention_input", "gpt2.py", "self.hook_mlp_in(x)))))", "self.hook_mlp_in(x) * 1.001))))"
    ),
    Mutation("gpt2_view_of_the_wrong_weights", "gpt2.py", "return self._heads(2)", "return self._heads(1)"),
    Mutation("gpt2_positions_from_1", "gpt2.py", "self.pos_embed(positions))", "self.pos_embed((positions + 1) % 43))"),
]
LLAMA = [
    Mutation(
        "llama_scale_of_the_model_width",
        "llama.py",
        "self.scale = config.d_head**-0.5",
        "self.scale = (config.d_model / config.n_heads) ** -0.5",
    ),
    Mutation("llama_q_bias", "llama.py", "self.q(self.hook_q_in(x))", "(self.hook_q_in(x) @ self.q.weight.t())"),
    Mutation("llama_k_bias", "llama.py", "self.k(self.hook_k_in(x))", "(self.hook_k_in(x) @ self.k.weight.t())"),
    Mutation("llama_v_bias", "llama.py", "self.v(self.hook_v_in(x))", "(self.hook_v_in(x) @ self.v.weight.t())"),
    Mutation(
        "llama_gate_bias", "llama.py", "self.gate(self.hook_gate_in(x))", "self.hook_gate_in(x) @ self.gate.weight.t()"
    ),
    Mutation("llama_up_bias", "llama.py", "self.up(self.hook_up_in(x))", "self.hook_up_in(x) @ self.up.weight.t()"),
    Mutation(
        "llama_down_bias",
        "llama.py",
        "self.down(self.hook_post(gate * linear))",
        "self.hook_post(gate * linear) @ self.down.weight.t()",
    ),
    Mutation("llama_ln1_for_ln2", "llama.py", "self.mlp(self.ln2(", "self.mlp(self.ln1("),
    Mutation(
        "llama_gate_and_up_swapped", "llama.py", "self.act(self.hook_pre(self.gate(", "self.act(self.hook_pre(self.up("
    ),
    Mutation("llama_keys_not_rotated", "llama.py", "rotate(k, span.rotation)", "k"),
    Mutation("llama_no_final_norm", "llama.py", "self.unembed(self.ln_final(x))", "self.unembed(x)"),
    Mutation("mistral_window_ignored", "mistral.py", "self.window = config.window", "self.window = None"),
    Mutation("tied_ignored", "hooked_model.py", "if self.config.tied:", "if False:"),
]
ATTENTION = [
    Mutation(
        "mask_sees_the_next_token", "attention.py", "token <= token[past:, None]", "token <= token[past:, None] + 1"
    ),
    Mutation("mask_hides_oneself", "attention.py", "token <= token[past:, None]", "token < token[past:, None]"),
    Mutation("explicit_mask_hides_oneself", "attention.py", ".triu(1)", ".triu(0)"),
    Mutation("explicit_mask_sees_the_next_token", "attention.py", ".triu(1)", ".triu(2)"),
    Mutation(
        "window_too_wide",
        "attention.py",
        "positions[:, past:, None] - window)",
        "positions[:, past:, None] - window - 1)",
    ),
    Mutation(
        "window_too_narrow",
        "attention.py",
        "positions[:, past:, None] - window)",
        "positions[:, past:, None] - window + 1)",
    ),
    Mutation("window_skipped_for_prompts_one_longer", "attention.py", "n_pos <= window", "n_pos <= window + 1"),
    Mutation("triangle_with_a_filled_cache", "attention.py", "(past == 0 and (", "(True and ("),
    Mutation("oldest_key_too_new", "attention.py", "max(0, past + 1 - window)", "max(0, past + 2 - window)"),
    Mutation("oldest_key_too_old", "attention.py", "max(0, past + 1 - window)", "max(0, past - window)"),
    Mutation(
        "oldest_key_too_new_when_padded",
        "attention.py",
        "<= positions[:, past : past + 1] - window)",
        "<= positions[:, past : past + 1] - window + 1)",
    ),
    Mutation("oldest_key_of_the_shortest_prompt", "attention.py", "sum(dim=-1).min())", "sum(dim=-1).max())"),
    Mutation(
        "padding_counts_as_positions",
        "attention.py",
        "else seen.cumsum(dim=-1) - 1",
        "else torch.ones_like(seen).cumsum(dim=-1) - 1",
    ),
    Mutation(
        "positions_start_again_with_each_part",
        "attention.py",
        "everywhere[:, past:].clamp",
        "everywhere[:, :n_pos].clamp",
    ),
    Mutation(
        "padding_is_seen", "attention.py", "(mask & seen[:, None])[:, None]", "mask.expand(len(seen), -1, -1)[:, None]"
    ),
    Mutation(
        "blind_rows_left_to_softmax",
        "attention.py",
        "pattern = pattern.masked_fill(span.blind[:, None, :, None], 0)",
        "pass",
    ),
    Mutation(
        "padding_of_earlier_parts_forgotten",
        "attention.py",
        "cache.mask, cache.oldest = seen, oldest",
        "cache.oldest = oldest",
    ),
    Mutation(
        "context_one_too_long",
        "attention.py",
        "if total > n_ctx and (seen is None",
        "if total > n_ctx + 1 and (seen is None",
    ),
    Mutation(
        "context_one_too_short",
        "attention.py",
        "if total > n_ctx and (seen is None",
        "if total >= n_ctx and (seen is None",
    ),
    Mutation("context_of_the_shortest_prompt", "attention.py", "seen.sum(dim=-1).max()", "seen.sum(dim=-1).min()"),
    Mutation("fused_scale_left_to_torch", "attention.py", "scale=scale,", "scale=None,"),
    Mutation("explicit_scale_dropped", "attention.py", ".mul_(scale)", ""),
    Mutation(
        "explicit_heads_in_the_wrong_order",
        "attention.py",
        "k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)",
        "k.repeat(1, 1, group, 1), v.repeat(1, 1, group, 1)",
    ),
    Mutation(
        "masked_by_a_number", "attention.py", "masked_fill_(span.hidden, -math.inf)", "masked_fill_(span.hidden, -1e9)"
    ),
    Mutation("attention_always_explicit", "attention.py", "if layer.hook_attn_scores.hooks or", "if True or"),
    Mutation("scores_on_the_fused_path", "attention.py", "if layer.hook_attn_scores.hooks or ", "if "),
    Mutation(
        "head_inputs_through_the_wrong_norm",
        "attention.py",
        "block.ln1.fused(after[name])",
        "block.ln2.fused(after[name])",
    ),
    Mutation(
        "shared_input_counted_twice",
        "attention.py",
        "block.ln1.fused(after[name]) - normed",
        "block.ln1.fused(after[name])",
    ),
    Mutation("grouped_inputs_summed", "attention.py", '"mean", h=kv_heads', '"sum", h=kv_heads'),
    Mutation(
        "changed_input_left_out",
        "attention.py",
        "if follow or copies is not shared or after[n] is not before[n]",
        "if follow or copies is not shared",
    ),
    Mutation(
        "changed_copies_left_out",
        "attention.py",
        "if follow or copies is not shared or after[n] is not before[n]",
        "if follow or after[n] is not before[n]",
    ),
    Mutation(
        "gradient_of_head_inputs_lost",
        "attention.py",
        "follow = x.requires_grad and torch.is_grad_enabled()",
        "follow = False",
    ),
    Mutation("values_read_with_the_keys_weights", "attention.py", '"v": self.W_V}', '"v": self.W_K}'),
    Mutation(
        "output_bias_dropped",
        "attention.py",
        "return self.out(z.flatten(2))",
        "return self.out(z.flatten(2)) - (0 if self.out.bias is None else self.out.bias)",
    ),
    Mutation("result_bias_dropped", "attention.py", "else result + self.out.bias", "else result"),
]
ROTARY = [
    Mutation(
        "rotate_half_sign", "rotary.py", "torch.cat([-first, second], dim=-1)", "torch.cat([first, -second], dim=-1)"
    ),
    Mutation("pairs_of_neighbours", "rotary.py", "x.roll(x.shape[-1] // 2, dims=-1)", "x.roll(1, dims=-1)"),
    Mutation(
        "angles_of_neighbours",
        "rotary.py",
        "torch.cat([angles, angles], dim=-1)",
        "angles.repeat_interleave(2, dim=-1)",
    ),
    Mutation(
        "angles_in_the_models_dtype", "rotary.py", "positions[..., None].float()", "positions[..., None].to(dtype)"
    ),
    Mutation("theta_fixed", "rotary.py", "1.0 / self.theta ** (torch.arange(", "1.0 / 10000.0 ** (torch.arange("),
    Mutation(
        "frequencies_built_on_meta",
        "rotary.py",
        'dtype=torch.float32, device="cpu") / d_head)\n\n    def amplitude',
        "dtype=torch.float32) / d_head)\n\n    def amplitude",
    ),
    Mutation(
        "linear_multiplied",
        "rotary.py",
        "super().frequencies(d_head) / self.factor",
        "super().frequencies(d_head) * self.factor",
    ),
    Mutation("linear_ignored", "rotary.py", "super().frequencies(d_head) / self.factor", "super().frequencies(d_head)"),
    Mutation("dynamic_offset", "rotary.py", "- (self.factor - 1)", "- self.factor"),
    Mutation("dynamic_exponent", "rotary.py", "** (d_head / (d_head - 2))", "** (d_head / (d_head - 1))"),
    Mutation("dynamic_length_off_by_one", "rotary.py", "positions.amax(dim=-1) + 1", "positions.amax(dim=-1)"),
    Mutation(
        "dynamic_length_of_the_batch",
        "rotary.py",
        "positions.amax(dim=-1) + 1",
        "positions.amax().expand(len(positions)) + 1",
    ),
    Mutation("dynamic_never", "rotary.py", "length > self.n_ctx", "length > 10**9"),
    Mutation("dynamic_reach", "rotary.py", "return int(n_ctx * self.factor)", "return n_ctx"),
    Mutation("llama3_low_bound", "rotary.py", "turns < self.low_freq_factor", "turns < self.high_freq_factor"),
    Mutation("llama3_high_bound", "rotary.py", "turns > self.high_freq_factor", "turns > self.low_freq_factor"),
    Mutation(
        "llama3_blend_reversed",
        "rotary.py",
        "(1 - blend) * plain / self.factor + blend * plain",
        "blend * plain / self.factor + (1 - blend) * plain",
    ),
    Mutation("llama3_turns_in_radians", "rotary.py", "(2 * math.pi / plain)", "(1 / plain)"),
    Mutation("yarn_ramp_reversed", "rotary.py", "keep = 1 - self._ramp(d_head)", "keep = self._ramp(d_head)"),
    Mutation("yarn_truncate_ignored", "rotary.py", "if self.truncate:", "if True:"),
    Mutation("yarn_never_truncates", "rotary.py", "if self.truncate:", "if False:"),
    Mutation(
        "yarn_rounds_both_down", "rotary.py", "math.floor(low), math.ceil(high)", "math.floor(low), math.floor(high)"
    ),
    Mutation("yarn_attention_factor_ignored", "rotary.py", "return self.attention_factor", "return 1.0"),
    Mutation(
        "yarn_beta_fast_ignored",
        "rotary.py",
        "self._pair_turning(self.beta_fast, d_head)",
        "self._pair_turning(32.0, d_head)",
    ),
    Mutation(
        "yarn_beta_slow_ignored",
        "rotary.py",
        "self._pair_turning(self.beta_slow, d_head)",
        "self._pair_turning(1.0, d_head)",
    ),
    Mutation("yarn_last_pair", "rotary.py", "min(high, d_head - 1)", "min(high, d_head // 2 - 1)"),
    Mutation("yarn_first_pair", "rotary.py", "max(low, 0)", "low"),
    Mutation("yarn_step", "rotary.py", "high += 0.001", "high += 1.5"),
    Mutation("yarn_pair_of_a_turn", "rotary.py", "(2 * math.log(self.theta))", "math.log(self.theta)"),
]
CACHE = [
    Mutation(
        "cache_off_by_one",
        "kv_cache.py",
        "first = oldest - (self.seen - end)",
        "first = oldest - (self.seen - end) + 1",
    ),
    Mutation("cache_keeps_one_too_few", "kv_cache.py", "self.seen - oldest)", "self.seen - oldest - 1)"),
    Mutation(
        "cache_keeps_everything", "kv_cache.py", "keep = min(self._used, self.seen - oldest)", "keep = self._used"
    ),
    Mutation("cache_keeps_the_first", "kv_cache.py", "old[:, self._used - keep : self._used]", "old[:, :keep]"),
    Mutation("cache_values_are_keys", "kv_cache.py", "self._v[:, start:end] = v", "self._v[:, start:end] = k"),
    Mutation("cache_spoils_gradients", "kv_cache.py", "if k.requires_grad:", "if False:"),
    Mutation("cache_takes_other_batches", "kv_cache.py", "if self.length and filled != batch:", "if False:"),
    Mutation("cache_takes_half_a_pass", "kv_cache.py", "if len(set(lengths)) > 1:", "if False:"),
]
MODELS = ACTIVATION + NORM + GPT2 + LLAMA + ATTENTION + ROTARY + CACHE
