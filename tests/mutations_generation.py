"""Mistakes to plant in the products of the models, and in the steps of a generation that are written down."""

from functools import partial

from mutation import Mutation

Planted = partial(Mutation, folder="nnzoo/generation")

PRODUCTS = [
    Mutation("blocks_bias_written_to", "products.py", "product.add_(bias)", "bias.add(product, out=bias)"),
    Mutation("blocks_bias_dropped", "products.py", "(product if bias is None else", "(product if True else"),
    Mutation("blocks_for_many", "products.py", "if x.numel() <= MANY * d_in:", "if True:"),
    Mutation("blocks_for_one_fewer", "products.py", "if x.numel() <= MANY * d_in:", "if x.numel() < MANY * d_in:"),
    Mutation("blocks_of_gaps", "products.py", "weight.stride() == (1, d_out)", "weight.stride()[0] == 1"),
    Mutation("blocks_of_no_parts", "products.py", "d_in % BLOCKS == 0 and ", ""),
    Mutation("blocks_for_any_threads", "products.py", " and torch.get_num_threads() in (2, BLOCKS)", ""),
    Mutation("blocks_for_two_threads_only", "products.py", "in (2, BLOCKS)", "in (2, 2)"),
    Mutation("blocks_turned", "products.py", ".transpose(0, 1)\n", ".view(BLOCKS, -1, d_in // BLOCKS)\n"),
    Mutation("wide_of_any_layout", "products.py", " and weight.is_contiguous()", ""),
    Mutation("wide_is_all", "products.py", "weight.numel() >= WIDE", "True"),
    Mutation("wide_is_nothing", "products.py", "weight.numel() >= WIDE", "False"),
    Mutation("products_with_gradients", "products.py", "and not torch.is_grad_enabled():", ":"),
    Mutation("products_of_few", "products.py", "x.numel() >= FEW * x.shape[-1]", "x.numel() > 0"),
    Mutation("products_under_modes", "products.py", "== int(_followed.get())", ">= 0"),
    Mutation("products_never_on_tapes", "products.py", "== int(_followed.get())", "== 0"),
    Mutation(
        "products_by_other_threads",
        "products.py",
        "_get_mkldnn_enabled(), torch.get_num_threads()",
        "_get_mkldnn_enabled(), 0",
    ),
]
CACHES = [
    Mutation(
        "cache_rewinds_all_it_used", "kv_cache.py", "self._used -= max(0, self.seen - length)", "self._used = length"
    ),
    Mutation("cache_forgets_to_rewind_seen", "kv_cache.py", "self.seen = min(self.seen, length)", "pass"),
    Mutation("cache_rewinds_every_layer", "kv_cache.py", "in self.layers[layer:]:", "in self.layers:"),
    Mutation("cache_of_no_more_room", "kv_cache.py", "<= self._k.shape[1]:", "<= self._k.shape[1] + 1:"),
]
TAPES = [
    Planted("tape_keeps_what_is_live", "tapes.py", "        self._live.clear()\n", ""),
    Planted("tape_keeps_what_was_found", "tapes.py", "[_NOTHING] * len(self._found)", "self._found[:]"),
    Planted(
        "tape_forgets_changes",
        "tapes.py",
        "if changes:\n            self._calls.append(ask)",
        "if changes:\n            pass",
    ),
    Planted(
        "tape_finds_once",
        "tapes.py",
        "is_live and _ATTENTION not in name:\n            self._find_again(ask, result)",
        "is_live and _ATTENTION not in name:\n            pass",
    ),
    Planted(
        "tape_lists_not_looked_into",
        "tapes.py",
        "if isinstance(x, list | tuple) else []\n        if not any",
        "if False else []\n        if not any",
    ),
    Planted(
        "tape_named_arguments_of_before",
        "tapes.py",
        "            for key, later in names:\n                named[key] = later()\n",
        "",
    ),
    Planted(
        "tape_everything_a_view",
        "tapes.py",
        "any(x.untyped_storage().data_ptr() in memory for x in _tensors(result))",
        "True",
    ),
    Planted("tape_rolls_back", "tapes.py", ", dims[0])[::-1]", ", dims[0])"),
    Planted("tape_products_without_bias", "tapes.py", "    if bias is None:\n", "    if True:\n"),
    Planted("tape_products_of_gaps", "tapes.py", "x.is_contiguous() and out.is_contiguous() and ", ""),
    Planted(
        "tape_numbers_allowed",
        "tapes.py",
        "if by_value or not isinstance(result, Tensor | list | tuple):",
        "if not isinstance(result, Tensor | list | tuple):",
    ),
    Planted(
        "tape_writes_while_it_looks",
        "tapes.py",
        "        self._writes = False\n        try:\n            yield",
        "        try:\n            yield",
    ),
    Planted("tape_on_the_default_device", "tapes.py", ", device=keys.device)", ")"),
    Planted("tape_of_any_class", "tapes.py", "        if type(x) is not Tensor:\n", "        if False:\n"),
    Planted("tape_settles_once", "tapes.py", "        self._calls.append(lambda: fixed.copy_(found[place]))\n", ""),
    Planted(
        "tape_window_forgotten",
        "tapes.py",
        "n_ctx=self._n_ctx, window=self._window)",
        "n_ctx=self._n_ctx, window=None)",
    ),
]
STRETCHES = [
    Planted(
        "tape_written_on_a_full_cache",
        "taped.py",
        "            common.cache.rewind(layer, seen)\n            compare",
        "            compare",
    ),
    Planted(
        "tape_failed_on_a_full_cache",
        "taped.py",
        "            common.cache.rewind(layer, seen)\n            return self._usual(x)",
        "            return self._usual(x)",
    ),
    Planted("tape_output_given_away", "taped.py", "return self._output.clone()", "return self._output"),
    Planted("tape_input_of_before", "taped.py", "        self._input.copy_(x)\n", ""),
    Planted("tape_input_is_the_callers", "taped.py", "self._input = x.clone()", "self._input = x"),
    Planted(
        "tape_trusted_too_early",
        "taped.py",
        "            compare(replayed :=",
        "            self._calls = calls\n            compare(replayed :=",
    ),
    Planted("tape_mask_of_before", "taped.py", "way.span.mask = self._common.tape.now(way.span.mask)", "pass"),
    Planted("tape_for_other_padding", "taped.py", "self._cache.mask is None, ", ""),
    Planted("tape_for_other_batches", "taped.py", "len(tokens), self._cache", "0, self._cache"),
    Planted("tape_for_other_modes", "taped.py", "kind = (outside, mode,", "kind = (outside,"),
    Planted("tape_for_other_parts", "taped.py", "kind = (outside, mode,", "kind = (mode,"),
    Planted("tape_for_other_products", "taped.py", ", products.choice())", ")"),
    Planted("tape_of_two_generations", "taped.py", "if one.kind == kind and not one.is_taken", "if one.kind == kind"),
    Planted("tape_half_written", "taped.py", "one.is_taken or one.is_whole", "True"),
    Planted("tape_keeps_the_model", "taped.py", "self.live.cache = self.way = None", "self.live.cache = None"),
    Planted("tape_keeps_the_cache", "taped.py", "self.live.cache = self.way = None", "self.way = None"),
    Planted(
        "tapes_without_end",
        "taped.py",
        "            del kept[: max(0, len(kept) - KEPT + 1)]",
        "            del kept[:0]",
    ),
    Planted("tape_at_once", "taped.py", "            if not again:\n", "            if False:\n"),
    Planted("tape_of_large_steps", "taped.py", "numbers < MUCH and", "numbers <= 4 * MUCH and"),
]
STEPS = [
    Planted("tape_epsilon_of_before", "steps.py", "[*values, *map(getitem, *self._attributes)]", "values"),
    Planted("tape_strides_of_before", "steps.py", "(p.shape, p.stride()) for", "(p.shape,) for"),
    Planted("tape_shapes_of_before", "steps.py", "(p.shape, p.stride()) for", "(p.stride(),) for"),
    Planted("tape_methods_of_before", "steps.py", "(type(one), type(one).forward, one", "(type(one), one"),
    Planted(
        "tape_window_of_before",
        "steps.py",
        'values += [value for key, value in vars(model).items() if key[0] != "_"]',
        "pass",
    ),
    Planted(
        "tape_hooks_of_before", "steps.py", "values += [point.hooks for point in model.hook_points.values()]", "pass"
    ),
    Planted("tape_parts_of_before", "steps.py", "sizes += [(len(one._modules), len(vars(one)))", "sizes += [0"),
    Planted("tape_modules_of_before", "steps.py", " and all(map(is_, others, map(getitem, *self._others)))", ""),
    Planted(
        "tape_modules_by_id",
        "steps.py",
        "self._places(), [*map(getitem, *self._others)]",
        "self._places(), [*map(id, map(getitem, *self._others))]",
    ),
    Planted("tape_weights_of_before", "steps.py", "places == self._places() and", ""),
    Planted("tape_listeners_of_the_original", "steps.py", "return type(None), ()", "return object.__reduce__(self)"),
    Planted("tape_of_any_function", "steps.py", "str(function.__module__).startswith(OURS)", "True"),
    Planted("tape_of_any_module", "steps.py", "not kind.__module__.startswith(KNOWN) or ", ""),
    Planted("tape_of_dropout", "steps.py", 'module.training and kind.__module__.startswith("torch.")', "False"),
    Planted("tape_of_what_is_compiled", "steps.py", " or module._compiled_call_impl is not None", ""),
    Planted(
        "tape_deaf_to_pytorchs_hooks", "steps.py", "+= [module._forward_hooks, module._forward_pre_hooks]", "+= []"
    ),
    Planted(
        "tape_deaf_to_global_hooks",
        "steps.py",
        "self._parts[BEGIN] += [pytorch._global_forward_hooks, pytorch._global_forward_pre_hooks]",
        "pass",
    ),
    Planted("tape_with_gradients", "steps.py", "        not torch.is_grad_enabled()\n        and ", "        "),
    Planted("tape_under_autocast", "steps.py", "        and not torch.is_autocast_enabled(device.type)\n", ""),
    Planted("tape_under_modes", "steps.py", "        and torch._C._len_torch_dispatch_stack() == 0\n", ""),
    Planted("tape_under_function_modes", "steps.py", "type(mode) is DeviceContext", "True"),
    Planted(
        "tape_under_transforms", "steps.py", "        and torch._C._functorch.peek_interpreter_stack() is None\n", ""
    ),
    Planted(
        "recording_when_somebody_came",
        "recordings.py",
        "self._before is not None and not self._before[0] and",
        "self._before is not None and",
    ),
    Planted(
        "recording_of_a_changed_model",
        "recordings.py",
        "        if not self._listeners.are_current:",
        "        if False:",
    ),
    Planted("recording_never_compared", "recordings.py", "    if not error <=", "    if False and not error <="),
    Planted(
        "recording_beyond_the_context",
        "recordings.py",
        "< self._cache.length < self._model.max_tokens",
        "< self._cache.length",
    ),
    Planted("recording_never_alone", "loop.py", "type(decoder) is Decoder and decoder.stream is None", "True"),
]
PRODUCTS += CACHES
GENERATION = TAPES + STRETCHES + STEPS
