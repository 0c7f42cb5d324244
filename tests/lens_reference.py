"""The scripts of lens_programs/, run as text: with TransformerLens, and with nnzoo by another import.

What TransformerLens 3.9 gives is recorded in data/lens_programs.json and data/lens_signatures.json. To record it again,
run this file as a script where TransformerLens is installed.
"""

import importlib
import inspect
import json
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layout import ROOT

PROGRAMS = {file.stem: file for file in sorted((ROOT / "tests" / "lens_programs").glob("*.py"))}
VALUES = ROOT / "tests" / "data" / "lens_programs.json"
SIGNATURES = ROOT / "tests" / "data" / "lens_signatures.json"


def with_nnzoo(script: str) -> str:
    """A script with nnzoo's module in the place of TransformerLens's: its imports, and nothing else.

    >>> with_nnzoo("import transformer_lens")
    'import nnzoo.transformer_lens as transformer_lens'
    >>> with_nnzoo("from transformer_lens.hook_points import HookPoint")
    'from nnzoo.transformer_lens.hook_points import HookPoint'
    """
    script = re.sub(
        r"^import transformer_lens$", "import nnzoo.transformer_lens as transformer_lens", script, flags=re.M
    )
    return re.sub(r"^(from|import) transformer_lens\b", r"\1 nnzoo.transformer_lens", script, flags=re.M)


def run(script: str, name: str) -> dict[str, Any]:
    """What a script leaves in `results`, as what JSON holds."""
    scope: dict[str, Any] = {"__name__": name}
    with torch.enable_grad():  # a script may switch it off
        exec(compile(script, name, "exec"), scope)
    return plain(scope["results"])


def plain(value: Any) -> Any:
    """Tensors and arrays as lists, all the way down.

    >>> plain({"a": torch.ones(2), "b": (1, None)})
    {'a': [1.0, 1.0], 'b': [1, None]}
    """
    if isinstance(value, (Tensor, np.ndarray)):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def rounded(value: Any) -> Any:
    """Numbers with six digits, for a file that is read."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


# --- signatures ----------------------------------------------------------------------------------------------------

CLASSES = {
    "HookedTransformer": """from_pretrained from_pretrained_no_processing forward loss_fn run_with_cache run_with_hooks
        hooks add_hook add_perma_hook reset_hooks remove_all_hook_fns check_and_add_hook add_caching_hooks
        get_caching_hooks list_hooks generate generate_stream to_tokens to_string to_str_tokens to_single_token
        to_single_str_token get_token_position tokens_to_residual_directions accumulated_bias all_composition_scores
        all_head_labels set_tokenizer set_use_attn_result set_use_split_qkv_input set_use_hook_mlp_in set_use_attn_in
        process_weights_ load_and_process_state_dict init_weights to cuda cpu setup hook_points clear_contexts""",
    "HookedRootModule": "setup hook_points add_hook reset_hooks hooks run_with_hooks run_with_cache add_caching_hooks",
    "ActivationCache": """__init__ remove_batch_dim to toggle_autodiff apply_slice_to_batch_dim accumulated_resid
        logit_attrs decompose_resid compute_head_results stack_head_results stack_activation get_neuron_results
        stack_neuron_results apply_ln_to_stack get_full_resid_decomposition""",
    "FactoredMatrix": "__init__ svd norm make_even get_corner collapse_l collapse_r unsqueeze",
    "HookedTransformerConfig": "__init__",
    "SVDInterpreter": "get_singular_vectors",
    "TransformerLensKeyValueCache": "init_cache freeze unfreeze",
}
MODULES = {
    "hook_points.HookPoint": "add_hook add_perma_hook remove_hooks has_hooks clear_context layer",
    "patching": """generic_activation_patch layer_pos_patch_setter layer_head_vector_patch_setter
        get_act_patch_resid_pre
        get_act_patch_resid_mid get_act_patch_attn_out get_act_patch_mlp_out get_act_patch_attn_head_out_by_pos
        get_act_patch_attn_head_q_by_pos get_act_patch_attn_head_k_by_pos get_act_patch_attn_head_v_by_pos
        get_act_patch_attn_head_pattern_by_pos get_act_patch_attn_head_pattern_dest_src_pos
        get_act_patch_attn_head_out_all_pos get_act_patch_attn_head_q_all_pos get_act_patch_attn_head_k_all_pos
        get_act_patch_attn_head_v_all_pos get_act_patch_attn_head_pattern_all_pos get_act_patch_attn_head_all_pos_every
        get_act_patch_attn_head_by_pos_every get_act_patch_block_every""",
    "train": "train HookedTransformerTrainConfig",
    "head_detector": "detect_head compute_head_attention_similarity_score",
    "evals": "sanity_check evaluate_on_dataset induction_loss ioi_eval IOIDataset",
    "utils": """to_numpy get_corner remove_batch_dim transpose is_square is_lower_triangular get_offset_position_ids
        get_cumsum_along_dim repeat_along_head_dimension filter_dict_by_prefix lm_cross_entropy_loss lm_accuracy
        gelu_fast solu get_device sample_logits get_act_name test_prompt override_or_use_default_value get_nested_attr
        set_nested_attr get_attention_mask composition_scores logits_to_df calc_fan_in_and_fan_out init_xavier_uniform_
        init_xavier_normal_ init_kaiming_uniform_ init_kaiming_normal_""",
}


def signatures(package: str) -> dict[str, list[list[str]]]:
    """Names and defaults of the parameters of every method and function, in order."""
    found = {}
    root = importlib.import_module(package)
    for path, names in {**CLASSES, **MODULES}.items():
        module, _, attribute = path.partition(".")
        owner = getattr(root, module, None) or importlib.import_module(f"{package}.{module}")
        owner = getattr(owner, attribute) if attribute else owner
        for name in names.split():
            parameters = inspect.signature(getattr(owner, name)).parameters.values()
            found[f"{path}.{name}"] = [[one.name, kind_of(one), default_of(one)] for one in parameters]
    return found


def kind_of(parameter: inspect.Parameter) -> str:
    return parameter.kind.name


def default_of(parameter: inspect.Parameter) -> str:
    """A default as text; empty lists, tuples and None alike: nothing."""
    if parameter.default is inspect.Parameter.empty:
        return "required"
    if callable(parameter.default):
        return getattr(parameter.default, "__name__", "")
    return "nothing" if parameter.default in (None, [], ()) else repr(parameter.default)


def record() -> None:
    """Write down what TransformerLens gives."""
    import transformer_lens

    table = signatures("transformer_lens")
    transformer_lens.HookedTransformer.from_pretrained = classmethod(from_embedded)
    values = {name: rounded(run(file.read_text(), name)) for name, file in PROGRAMS.items()}
    VALUES.write_text(json.dumps(values, separators=(",", ":"), sort_keys=True).replace("]}", "]}\n") + "\n")
    SIGNATURES.write_text(json.dumps(table, separators=(",", ":"), sort_keys=True).replace('"],', '"],\n') + "\n")


def from_embedded(cls: Any, model_name: str, **options: Any) -> Any:
    """TransformerLens's model of an embedded checkpoint: it reads no folders itself."""
    import transformer_lens
    from transformers import AutoTokenizer

    from nnzoo.transformer_lens.loading_from_pretrained import get_pretrained_model_config
    from nnzoo.weights import load, resolve
    from test_transformer_lens import lens_weights

    steps = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
    flags = {name: options.get(name, True) for name in steps}
    native = load(model_name, dtype=torch.float32)
    fields = vars(get_pretrained_model_config(model_name, fold_ln=flags["fold_ln"], device="cpu"))
    fields = {**fields, "tokenizer_name": None, "default_prepend_bos": options.get("default_prepend_bos") is not False}
    tokenizer = AutoTokenizer.from_pretrained(resolve(model_name))
    model = cls(
        transformer_lens.HookedTransformerConfig(**fields),
        tokenizer,
        default_padding_side=options.get("default_padding_side"),
    )
    refactor = options.get("refactor_factored_attn_matrices", False)
    model.load_and_process_state_dict(lens_weights(native), **flags, refactor_factored_attn_matrices=refactor)
    return model


if __name__ == "__main__":
    record()
