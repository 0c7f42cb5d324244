"""Analyses next to TransformerLens 3.9's own on the same weights: values that were recorded from it.

Run as a script where TransformerLens is installed, this file records them again.
"""

import json
from pathlib import Path

import pytest
import torch

from nnzoo.analysis import (
    attribute_logits,
    composition_scores,
    copying_scores,
    detect_heads,
    patch_activations,
    qk_circuit,
)
from nnzoo.processing import process_weights
from small_models import POS, difference, small
from test_transformer_lens import lens

TABLE = Path(__file__).parent / "data" / "transformer_lens_analysis.json"
FAMILIES = ["gpt2", "llama"]  # its local attention, Mistral's, sees one token more
# statistics of an RMSNorm are float32 here, float64 in a float64 model there
TOLERANCE = {"gpt2": 1e-6, "llama": 1e-5}
PATCHES = {
    "get_act_patch_resid_pre": ("resid_pre", None),
    "get_act_patch_resid_mid": ("resid_mid", None),
    "get_act_patch_attn_out": ("attn_out", None),
    "get_act_patch_mlp_out": ("mlp_out", None),
    "get_act_patch_attn_head_out_all_pos": ("z", "head"),
    "get_act_patch_attn_head_q_all_pos": ("q", "head"),
    "get_act_patch_attn_head_pattern_all_pos": ("pattern", "head"),
    "get_act_patch_attn_head_out_by_pos": ("z", "pos head"),
    "get_act_patch_attn_head_pattern_by_pos": ("pattern", "head query"),
}
KINDS = {
    "previous_token": "previous_token_head",
    "duplicate_token": "duplicate_token_head",
    "induction": "induction_head",
}


def subject(family):
    """A model and two prompts, the same every time; a seed's random numbers are torch's promise."""
    torch.manual_seed(0)
    model = process_weights(small(family, n_kv_heads=4) if family == "llama" else small(family))
    base, source = torch.randint(0, 31, (2, 1, POS))
    base[:, 4:] = base[:, :3]
    return model, base, source


def preference(logits):
    return (logits[:, -1, 3] - logits[:, -1, 5]).mean()


@pytest.fixture(scope="module", params=FAMILIES)
def recorded(request):
    table = json.loads(TABLE.read_text())[request.param]
    return request.param, {name: torch.tensor(value, dtype=torch.float64) for name, value in table.items()}


@pytest.mark.parametrize("name", PATCHES)
def test_patches_are_those_of_its_patching(recorded, name):
    family, table = recorded
    at, by = PATCHES[name]
    found = patch_activations(*subject(family), preference, at=at, by=by)
    assert difference(found.values, table[name]) < TOLERANCE[family]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exclude", [False, True])
def test_heads_are_those_of_its_detector(recorded, kind, exclude):
    family, table = recorded
    model, tokens, _ = subject(family)
    found = detect_heads(model, tokens, kind, exclude_first=exclude, exclude_self=exclude)
    assert difference(found.values, table[f"{kind} {exclude}"]) < 1e-4  # its score is float32


def test_circuits_are_those_of_its_factored_matrices(recorded):
    family, table = recorded
    model, _, _ = subject(family)
    for into in "qkv":
        found = composition_scores(model, into).values
        assert difference(found.view(2, 4, 2, 4), table[f"composition {into}"]) < 1e-5
    assert difference(copying_scores(model).values, table["copying"]) < 1e-5
    assert difference(qk_circuit(model).singular_values, table["svd"]) < 1e-5


def test_attributions_are_those_of_its_cache(recorded):
    family, table = recorded
    model, tokens, _ = subject(family)
    found = attribute_logits(model, tokens, 3, 5)
    assert difference(found.values[:-1], table["attributions"]) < TOLERANCE[family]


def record(family):
    from transformer_lens import head_detector, patching

    model, base, source = subject(family)
    theirs = lens(model)
    _, cache = theirs.run_with_cache(source)
    table = {name: getattr(patching, name)(theirs, base, cache, preference) for name in PATCHES}
    _, own = theirs.run_with_cache(base)
    score = head_detector.compute_head_attention_similarity_score
    for kind, name in KINDS.items():
        wanted = getattr(head_detector, f"get_{name}_detection_pattern")(base)
        for exclude in (False, True):
            flags = {"exclude_bos": exclude, "exclude_current_token": exclude, "error_measure": "mul"}
            table[f"{kind} {exclude}"] = torch.tensor([
                [score(own["pattern", i][0, h], detection_pattern=wanted, **flags) for h in range(4)] for i in range(2)
            ])  # fmt: skip
    for into in "qkv":
        table[f"composition {into}"] = theirs.all_composition_scores(into.upper())
    OV = theirs.OV
    eigenvalues = (theirs.W_E @ OV @ theirs.W_U).eigenvalues
    table["copying"] = (eigenvalues.sum(-1) / eigenvalues.abs().sum(-1)).real
    table["svd"] = theirs.QK.S
    stack = own.decompose_resid(pos_slice=-1)
    table["attributions"] = own.logit_attrs(stack, 3, 5, pos_slice=-1)[:, 0]
    return {name: value.detach().tolist() for name, value in table.items()}


if __name__ == "__main__":
    TABLE.write_text(json.dumps({family: record(family) for family in FAMILIES}) + "\n")
