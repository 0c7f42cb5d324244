"""Hook points and what is computed from them, next to TransformerLens on the same weights.

Names, shapes and firing order are compared with a table that was recorded from TransformerLens 3.9 (run this file as
a script to record it again). Values are compared where it is installed. It norms the stream three times, for q, k and
v, and its hook points in ln1 fire three times: here once.
"""

import json
from pathlib import Path

import pytest
import torch

from nnzoo.processing import process_weights
from small_models import FAMILIES, POS, difference, prompts, small

TABLE = Path(__file__).parent / "data" / "hook_names.json"
# sizes of axes in TransformerLens's letters; GPT-2 has d_head = d_model / n_heads = 6 too
AXES = {3: "b", POS: "p", 4: "H", 2: "K", 6: "dh", 20: "d", 24: "d", 28: "m", 31: "V", 1: "1"}
HEAD_INPUTS = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input")
# statistics of an RMSNorm are float32 here (as LLaMA was trained), float64 in a float64 model there
TOLERANCE = {"gpt2": 1e-10, "llama": 1e-5, "mistral": 1e-5}


def lens(model, **flags):
    """TransformerLens's model with the weights of ours."""
    transformer_lens = pytest.importorskip("transformer_lens")
    c = model.config
    same = ("n_layers", "d_model", "n_ctx", "d_head", "n_heads", "d_mlp", "d_vocab", "eps")
    settings = {name: getattr(c, name) for name in same}
    settings |= {"act_fn": c.activation, "dtype": model.dtype, "device": "cpu", "default_prepend_bos": False}
    if hasattr(c, "rope"):
        settings |= {"normalization_type": "RMS", "final_rms": True, "gated_mlp": True}
        settings |= {"positional_embedding_type": "rotary", "rotary_dim": c.d_head, "rotary_base": c.rope.theta}
        settings |= {"n_key_value_heads": c.n_kv_heads}
    if model.window is not None:
        settings |= {"use_local_attn": True, "window_size": model.window, "attn_types": ["local"] * c.n_layers}
    theirs = transformer_lens.HookedTransformer(transformer_lens.HookedTransformerConfig(**settings, **flags))
    found = theirs.load_state_dict(lens_weights(model), strict=False)
    assert not found.unexpected_keys
    buffers = {name for name, _ in theirs.named_buffers()}
    assert not [key for key in found.missing_keys if key not in buffers]
    return theirs


def lens_weights(model):
    """Our weights under TransformerLens's names."""
    c = model.config
    state = {"embed.W_E": model.W_E, "unembed.W_U": model.W_U, "unembed.b_U": model.b_U}
    if hasattr(model, "W_pos"):
        state["pos_embed.W_pos"] = model.W_pos
    norms = {"ln_final": model.ln_final}
    for i, block in enumerate(model.blocks):
        norms |= {f"blocks.{i}.ln1": block.ln1, f"blocks.{i}.ln2": block.ln2}
        for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
            shared = hasattr(c, "rope") and name[-1] in "KV"
            state[f"blocks.{i}.attn.{'_' * shared}{name}"] = getattr(block.attn, name)
        for name in ("W_in", "W_out", "W_gate", "b_in", "b_out"):
            if hasattr(block.mlp, name):
                state[f"blocks.{i}.mlp.{name}"] = getattr(block.mlp, name)
    for name, norm in norms.items():
        state |= {f"{name}.{key[0]}": value for key, value in norm.named_parameters()}
    return {name: value.detach().clone() for name, value in state.items()}


def fired(model, names=lambda name: True):
    """Names of hook points in the order in which they first fire, with the letters of their shapes."""
    seen = {}
    hook = (names, lambda value, hook: seen.update({hook.name: letters(hook.name, value.shape)}))
    model.run_with_hooks(prompts(), fwd_hooks=[hook])
    return seen


def letters(name, shape):
    if name.endswith(("hook_attn_scores", "hook_pattern")):
        return "b H q k"
    return " ".join(AXES[size] for size in shape)


def record(family):
    """TransformerLens's table of one family, whatever flags its hook points need there."""
    heads = fired(lens(small(family), use_split_qkv_input=True))
    if family == "gpt2":  # it refuses this flag with grouped queries
        heads |= fired(lens(small(family), use_attn_in=True))
    return {
        "in firing order": fired(lens(small(family), use_attn_result=True, use_hook_mlp_in=True)),
        "inputs of heads": {name: axes for name, axes in heads.items() if name.endswith(HEAD_INPUTS)},
    }


@pytest.fixture(scope="module")
def table():
    return json.loads(TABLE.read_text())


@pytest.mark.parametrize("family", FAMILIES)
def test_hook_points_fire_in_the_order_and_shapes_of_transformer_lens(family, table):
    expected = table[family]["in firing order"]
    assert list(fired(small(family), expected.__contains__).items()) == list(expected.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_of_heads_have_the_shapes_of_transformer_lens(family, table):
    expected = table[family]["inputs of heads"]
    assert fired(small(family), expected.__contains__) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_declared_axes_are_those_of_transformer_lens(family, table):
    words = {"b": "batch", "p": "pos", "H": "head", "K": "kv_head", "dh": "d_head", "d": "d_model", "m": "d_mlp",
             "V": "d_vocab", "1": "1", "q": "query", "k": "key"}  # fmt: skip
    model = small(family)
    for name, axes in {**table[family]["in firing order"], **table[family]["inputs of heads"]}.items():
        declared = model.hook_points[name].axes.replace("key_pos", "pos")
        assert declared == " ".join(words[letter] for letter in axes.split()), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_is_that_of_the_installed_transformer_lens(family, table):
    pytest.importorskip("transformer_lens")
    assert record(family) == table[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_those_of_transformer_lens(family, table):
    ours, tokens, names = small(family), prompts(), table[family]["in firing order"]
    logits, expected = lens(ours, use_attn_result=True, use_hook_mlp_in=True).run_with_cache(tokens)
    own_logits, cache = ours.run_with_cache(tokens, names_filter=names)
    assert set(cache) == set(expected)
    assert difference(own_logits, logits) < TOLERANCE[family]
    for name in names:
        assert difference(cache[name], expected[name]) < TOLERANCE[family], name


def gradients(model, tokens, names):
    """The gradient of the loss at hook points, summed where one fires several times in a pass."""
    sums = {}

    def add(gradient, hook):
        sums[hook.name] = sums.get(hook.name, 0) + gradient.clone()

    with model.hooks(bwd_hooks=[(names, add)]):
        model(tokens, return_type="loss").backward()
    return sums


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_transformer_lens(family, table):
    ours, tokens, names = small(family), prompts(), table[family]["in firing order"]
    theirs = lens(ours, use_attn_result=True, use_hook_mlp_in=True)
    expected, own = (gradients(model, tokens, names.__contains__) for model in (theirs, ours))
    assert set(own) == set(expected) == set(names)
    for name in names:
        assert difference(own[name], expected[name]) < TOLERANCE[family], name


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_at_any_hook_point_does_what_it_does_in_transformer_lens(family, table):
    ours, tokens = small(family), prompts()
    theirs = lens(ours, use_attn_result=True, use_hook_mlp_in=True)
    plain = ours(tokens)
    for name in table[family]["in firing order"]:
        hooks = [(name, lambda value, hook: value * torch.linspace(0.5, 1.5, value.shape[-1], dtype=value.dtype))]
        edited, expected = ours.run_with_hooks(tokens, fwd_hooks=hooks), theirs.run_with_hooks(tokens, fwd_hooks=hooks)
        assert difference(edited, expected) < TOLERANCE[family], name
        assert difference(edited, plain) > 1e-3, name


# it refuses hook_attn_in with grouped queries
@pytest.mark.parametrize(
    ("family", "point"), [(f, p) for f in FAMILIES for p in HEAD_INPUTS if f == "gpt2" or p != "hook_attn_in"]
)
def test_an_edit_of_a_heads_input_does_what_it_does_in_transformer_lens(family, point):
    ours, tokens, name = small(family), prompts(), f"blocks.1.{point}"
    theirs = lens(ours, **{"use_attn_in" if point == "hook_attn_in" else "use_split_qkv_input": True})
    other = torch.randn(ours.config.d_model, dtype=torch.float64)

    def edit(value, hook):
        value[:, :, 1] = value[:, :, 1] + 5 * other
        return value

    edited = ours.run_with_hooks(tokens, fwd_hooks=[(name, edit)])
    expected = theirs.run_with_hooks(tokens, fwd_hooks=[(name, edit)])
    assert difference(edited, expected) < TOLERANCE[family]
    assert difference(edited, ours(tokens)) > 1e-3
    _, cache = ours.run_with_cache(tokens, return_type="loss", incl_bwd=True, names_filter=name)
    _, theirs_cache = theirs.run_with_cache(tokens, return_type="loss", incl_bwd=True, names_filter=name)
    for key in (name, f"{name}_grad"):
        assert difference(cache[key], theirs_cache[key]) < TOLERANCE[family], key


METHODS = {
    "accumulated_resid": [{}, {"incl_mid": True, "apply_ln": True}, {"layer": 1, "mlp_input": True, "apply_ln": True}],
    "decompose_resid": [{}, {"layer": 1, "mlp_input": True}, {"mode": "attn", "apply_ln": True, "incl_embeds": False}],
    "stack_head_results": [{}, {"incl_remainder": True, "apply_ln": True}, {"layer": 1}],
    "stack_neuron_results": [
        {"layer": -1}, {"layer": 1, "incl_remainder": True, "apply_ln": True}, {"layer": 2, "neuron_slice": (0, 4)},
        {"layer": -1, "apply_ln": True, "project_output_onto": "W_U"},
    ],
    "get_full_resid_decomposition": [
        {}, {"expand_neurons": False}, {"layer": 1, "mlp_input": True, "apply_ln": True},
        {"apply_ln": True, "project_output_onto": "W_U"},
    ],
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pos_slice", [None, -1, (1, 4), [0, 2]])
def test_methods_of_the_cache_give_what_those_of_transformer_lens_give(family, pos_slice):
    ours, tokens = process_weights(small(family)), prompts()  # it leaves the weights of raw norms out
    theirs = lens(ours)
    _, cache = ours.run_with_cache(tokens)
    _, theirs_cache = theirs.run_with_cache(tokens)
    for method, calls in METHODS.items():
        for call in calls:
            call = call | {name: ours.W_U.detach() for name in ("project_output_onto",) if name in call}
            stack, labels = getattr(cache, method)(**call, pos_slice=pos_slice, return_labels=True)
            expected, names = getattr(theirs_cache, method)(**call, pos_slice=pos_slice, return_labels=True)
            assert labels == names
            assert difference(stack, expected) < max(TOLERANCE[family], 1e-6), (method, call)  # its biases are float32


@pytest.mark.parametrize("family", FAMILIES)
def test_attributions_are_those_of_transformer_lens(family):
    ours, tokens = process_weights(small(family)), prompts()
    _, cache = ours.run_with_cache(tokens)
    _, theirs = lens(ours).run_with_cache(tokens)
    stack, last = cache.decompose_resid(), cache.decompose_resid(pos_slice=-1)
    answers, others = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
    for call in (
        {"residual_stack": stack, "tokens": 5},
        {"residual_stack": stack, "tokens": tokens, "incorrect_tokens": tokens.roll(1)},
        {"residual_stack": last, "tokens": answers, "incorrect_tokens": others, "pos_slice": -1},
        {"residual_stack": stack, "tokens": 5, "incorrect_tokens": 6, "batch_slice": [0, 2]},
        {"residual_stack": last, "tokens": 5, "pos_slice": -1, "batch_slice": 1},
    ):
        assert difference(cache.logit_attrs(**call), theirs.logit_attrs(**call)) < TOLERANCE[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_have_the_shapes_and_values_of_transformer_lens(family):
    ours = small(family)
    theirs = lens(ours)
    names = "W_E W_U b_U W_Q W_K W_V W_O b_Q b_K b_V b_O W_in W_out b_in b_out".split()
    for name in [*names, "W_pos" if family == "gpt2" else "W_gate"]:
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=0)


if __name__ == "__main__":
    torch.manual_seed(0)
    TABLE.write_text(json.dumps({family: record(family) for family in FAMILIES}, indent=1) + "\n")
