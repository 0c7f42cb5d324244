"""Small models of one's own: what they compute, beside models that were checked, and in the sum that papers write.

Values next to TransformerLens's are in the programs attention_only, brackets, grokking, toy_choices, training.
"""

import math
from dataclasses import replace

import pytest
import torch

from nnzoo.analysis import attribute_logits, patch_activations, patch_paths
from nnzoo.architectures.toy import Toy, ToyConfig
from nnzoo.processing import center_writing_weights, fold_ln, process_weights
from nnzoo.transformer_lens import HookedTransformer, HookedTransformerConfig, components
from small_models import difference, prompts, small

CONFIG = ToyConfig(
    d_vocab=31, d_vocab_out=31, n_ctx=16, d_model=12, n_layers=2, n_heads=3, d_head=5, d_mlp=20, activation="gelu_new",
    norm="LN", eps=1e-5, shortformer=False, causal=True, scale=2.0, scale_by_layer=False,
)  # fmt: skip
ATTENTION_ONLY = replace(CONFIG, d_mlp=None, norm=None, shortformer=True)
CHOICES = {
    "attention only": ATTENTION_ONLY,
    "no norms": replace(CONFIG, norm=None),
    "shortformer": replace(CONFIG, shortformer=True),
    "RMSNorm": replace(CONFIG, norm="RMS"),
    "solu_ln": replace(CONFIG, activation="solu_ln"),
    "two classes": replace(CONFIG, d_vocab_out=2),
}
every_choice = pytest.mark.parametrize("config", CHOICES.values(), ids=CHOICES)


def toy(config: ToyConfig) -> Toy:
    torch.manual_seed(0)
    model = Toy(config).double()
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -1, 1)
    return model


def tokens(batch: int = 3, pos: int = 9) -> torch.Tensor:
    return torch.randint(0, 31, (batch, pos), generator=torch.Generator().manual_seed(1))


def test_a_toy_with_gpt2s_weights_gives_its_logits():
    gpt2 = small("gpt2")
    c = gpt2.config
    same = {name: getattr(c, name) for name in ("n_ctx", "d_model", "n_layers", "n_heads", "d_head", "d_mlp", "eps")}
    sizes = {"d_vocab": c.d_vocab, "d_vocab_out": c.d_vocab, "scale": c.d_head**0.5, "activation": c.activation}
    model = Toy(replace(CONFIG, **same, **sizes)).double()
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for path, name in [name.rsplit(".", 1) for name in weights if ".attn." in name or ".mlp." in name]:
            weights[f"{path}.{name}"].copy_(getattr(gpt2.get_submodule(path), name))
        for name in [name for name in weights if "embed.weight" in name or ".ln" in name or "ln_final" in name]:
            weights[name].copy_(gpt2.get_parameter(name))
        model.unembed.W_U.copy_(gpt2.W_U)
    ids = prompts()
    assert difference(model(ids), gpt2(ids)) < 1e-10


def test_a_choice_that_there_is_not_is_refused_by_name():
    with pytest.raises(ValueError, match="norm is 'LN', 'RMS', None, not 'LayerNorm'"):
        replace(CONFIG, norm="LayerNorm")
    with pytest.raises(ValueError, match="'solu_ln', not None"):
        replace(CONFIG, activation=None)
    assert Toy(replace(ATTENTION_ONLY, activation=None)).blocks


def test_attention_alone_is_a_sum_over_paths_from_tokens():
    """Logits of one layer: the embedding, and what each head copies from where it looks, read by W_U."""
    model, ids = toy(replace(ATTENTION_ONLY, n_layers=1)), tokens(1)
    logits, cache = model.run_with_cache(ids)
    (attn,) = [block.attn for block in model.blocks]
    x, placed = model.W_E[ids[0]], model.W_E[ids[0]] + model.W_pos[:9]
    stream = x + attn.b_O
    for head in range(3):
        q, k = placed @ attn.W_Q[head] + attn.b_Q[head], placed @ attn.W_K[head] + attn.b_K[head]
        scores = (q @ k.T / 2).masked_fill(torch.ones(9, 9).triu(1).bool(), -math.inf)
        assert difference(cache["pattern", 0][0, head], scores.softmax(-1)) < 1e-12
        stream = stream + scores.softmax(-1) @ (x @ attn.W_V[head] + attn.b_V[head]) @ attn.W_O[head]
    assert difference(logits[0], stream @ model.W_U + model.b_U) < 1e-12


@every_choice
def test_the_stream_is_the_sum_of_its_parts(config):
    model, ids = toy(config), tokens()
    _, cache = model.run_with_cache(ids)
    for expand_neurons in (True, False):
        parts = cache.get_full_resid_decomposition(expand_neurons=expand_neurons)
        assert difference(parts.sum(dim=0), cache["resid_post", -1]) < 1e-10


@every_choice
def test_looking_changes_nothing_and_blocks_can_be_entered(config):
    model, ids = toy(config), tokens()
    plain = model(ids)
    looked, cache = model.run_with_cache(ids, names_filter=lambda name: True)
    assert difference(looked, plain) < 1e-12
    assert difference(model(cache["resid_pre", 1], start_at_layer=1), plain) < 1e-12
    for name, point in model.hook_points.items():
        sizes = {**model.axis_sizes, "batch": 3, "pos": 9, "query": 9, "key": 9, "1": 1}
        assert list(cache[name].shape) == [sizes[axis] for axis in point.axes.split()], name


@every_choice
def test_a_text_read_in_parts_gives_the_logits_of_the_whole(config):
    (
        model,
        ids,
    ) = toy(config), tokens()
    cache = model.new_cache()
    parts = [model(ids[:, :4], cache=cache), model(ids[:, 4:5], cache=cache), model(ids[:, 5:], cache=cache)]
    assert difference(torch.cat(parts, dim=1), model(ids)) < 1e-12


@every_choice
def test_padding_is_seen_by_nobody(config):
    model, ids = toy(config), tokens(1)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = torch.arange(12)[None] >= 3
    assert difference(model(padded, attention_mask=mask)[:, 3:], model(ids)) < 1e-12


def test_attention_in_both_directions_sees_what_comes_later():
    model, ids = toy(replace(CONFIG, causal=False)), tokens(1)
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % 31
    assert difference(model(ids)[:, 0], model(other)[:, 0]) > 1e-3
    assert difference(toy(CONFIG)(ids)[:, 0], toy(CONFIG)(other)[:, 0]) == 0
    flipped = toy(replace(CONFIG, causal=False))
    with torch.no_grad():
        flipped.pos_embed.weight[:9] = model.W_pos[:9].flip(0)
    assert difference(flipped(ids.flip(1)).flip(1), model(ids)) < 1e-10
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    assert difference(model(padded, attention_mask=torch.arange(12)[None] >= 3)[:, 3:], model(ids)) < 1e-10
    with pytest.raises(NotImplementedError, match="no KV cache"):
        model(ids, cache=model.new_cache())


@pytest.mark.parametrize("norm", ["LN", "RMS", None])
@pytest.mark.parametrize("d_mlp", [20, None])
def test_processing_keeps_what_a_toy_predicts(norm, d_mlp):
    model, ids = toy(replace(CONFIG, norm=norm, d_mlp=d_mlp)), tokens()
    processed = process_weights(model)
    assert difference(processed(ids).log_softmax(-1), model(ids).log_softmax(-1)) < (1e-5 if norm == "RMS" else 1e-10)
    assert difference(processed(ids), model(ids)) > 1e-3  # logits are centred


def test_processing_says_what_it_cannot_keep():
    with pytest.raises(NotImplementedError, match="behind the norms"):
        fold_ln(toy(replace(CONFIG, shortformer=True)))
    with pytest.raises(ValueError, match="has NoNorm, which does not"):
        center_writing_weights(toy(replace(CONFIG, norm=None)))


# --- what looks at models looks at these too --------------------------------------------------------------------------


@every_choice
def test_attributions_of_components_sum_to_the_logit(config):
    model, ids = toy(config), tokens()
    parts = attribute_logits(model, ids, 1, 0)
    logits = model(ids)[:, -1]
    assert difference(parts.values.sum(), (logits[:, 1] - logits[:, 0]).mean()) < 1e-6


@every_choice
def test_patches_are_those_of_hooks(config):
    model, base, source = toy(config), tokens(1), tokens(1).flip(1)
    _, cache = model.run_with_cache(source)
    patched = patch_activations(model, base, source, lambda logits: logits[:, -1, 1], at="z").values

    def put(value, hook):
        value[:, :, 2] = cache[hook.name][:, :, 2]

    by_hand = model.run_with_hooks(base, fwd_hooks=[("blocks.0.attn.hook_z", put)])[0, -1, 1]
    assert difference(patched[0, 2], by_hand) < 1e-10
    assert difference(patch_activations(model, base, source, (1, 0), at="z").values[0, 2], by_hand) > 1e-6


def test_direct_paths_of_the_last_layer_of_attention_alone_are_patches():
    model, base, source = toy(ATTENTION_ONLY), tokens(1), tokens(1).flip(1)
    direct = patch_paths(model, base, source, (1, 0)).values
    assert difference(direct[1], patch_activations(model, base, source, (1, 0), at="z").values[1]) < 1e-10
    assert difference(direct[0], patch_activations(model, base, source, (1, 0), at="z").values[0]) > 1e-3


# --- by TransformerLens's names -------------------------------------------------------------------------------------

CFG = {"n_layers": 1, "d_model": 8, "n_ctx": 6, "d_head": 4, "d_vocab": 11, "act_fn": "relu", "device": "cpu"}


def test_what_is_trained_has_transformer_lens_names_and_processed_norms_are_not_trained():
    model = HookedTransformer(HookedTransformerConfig(**CFG))
    assert {name for name, _ in model.named_parameters()} == model.state_dict().keys()
    assert all(parameter is dict(model.named_parameters())[name] for name, parameter in model.named_parameters())
    assert next(model.named_parameters("model"))[0].startswith("model.")
    model.process_weights_()
    names = {name for name, _ in model.named_parameters()}
    assert names == model.state_dict().keys() and not any(name.rpartition(".")[2] in ("w", "b") for name in names)


def test_a_seed_gives_a_model_and_none_leaves_the_generator_where_the_user_set_it():
    cfg = HookedTransformerConfig(**CFG)
    torch.manual_seed(5)
    first = HookedTransformer(cfg).W_E
    torch.manual_seed(5)
    assert torch.equal(HookedTransformer(cfg).W_E, first)
    assert not torch.equal(HookedTransformer(cfg).W_E, first)
    seeded = HookedTransformerConfig(**CFG, seed=2)
    assert torch.equal(HookedTransformer(seeded).W_E, HookedTransformer(seeded).W_E)
    kept = HookedTransformer(HookedTransformerConfig(**CFG, init_weights=False, init_mode="muP", seed=2))
    before = kept.W_U.clone()
    kept.init_weights()
    assert not torch.equal(kept.W_U, before)


def test_a_named_tokenizer_is_loaded_when_text_comes():
    cfg = HookedTransformerConfig(**{**CFG, "d_vocab": -1}, tokenizer_name="nnzoo/tiny-gpt2")
    model = HookedTransformer(cfg)
    assert model.cfg.d_vocab == model.W_E.shape[0] == 774
    later = HookedTransformer(HookedTransformerConfig(**{**CFG, "d_vocab": 774}, tokenizer_name="nnzoo/tiny-gpt2"))
    assert later.to_str_tokens(" Mary gave") == ["<|endoftext|>", " Mary", " gave"]
    absent = HookedTransformerConfig(**CFG, tokenizer_name="/no/such/folder")
    with pytest.raises(FileNotFoundError):
        HookedTransformer(absent).to_tokens("Mary")


def test_parts_are_of_the_classes_of_components():
    model = HookedTransformer(HookedTransformerConfig(**{**CFG, "act_fn": "solu_ln"}))
    kinds = {"embed": "Embed", "unembed": "Unembed", "blocks.0": "TransformerBlock", "blocks.0.attn": "Attention"}
    kinds |= {"blocks.0.mlp": "MLP", "blocks.0.ln1": "LayerNorm", "blocks.0.mlp.ln": "LayerNorm"}
    assert all(isinstance(model.mod_dict[path], getattr(components, kind)) for path, kind in kinds.items())
    with pytest.raises(TypeError, match=r"HookedTransformer\(cfg\) makes a model"):
        components.MLP(model.cfg)
    with pytest.raises(NotImplementedError, match="no BERT"):
        components.BertBlock(model.cfg)


def test_training_refuses_what_it_does_not_do():
    from nnzoo.transformer_lens.train import HookedTransformerTrainConfig, train

    model = HookedTransformer(HookedTransformerConfig(**CFG))
    rows = [{"tokens": torch.arange(6)}]
    with pytest.raises(NotImplementedError, match="wandb"):
        train(model, HookedTransformerTrainConfig(1, 1, wandb=True), rows)
    with pytest.raises(ValueError, match="'Lion'"):
        train(model, HookedTransformerTrainConfig(1, 1, optimizer_name="Lion"), rows)


@pytest.mark.parametrize("optimizer", [{}, {"weight_decay": 0.1}])
def test_training_saves_state_dicts(optimizer, tmp_path):
    from nnzoo.transformer_lens.train import HookedTransformerTrainConfig, train

    model = HookedTransformer(HookedTransformerConfig(**CFG))
    before = model.W_E.clone()
    config = HookedTransformerTrainConfig(
        1, 1, **optimizer, max_steps=2, save_every=2, save_dir=str(tmp_path), device="cpu"
    )
    train(model, config, [{"tokens": torch.arange(6)}] * 5)
    assert not torch.equal(model.W_E, before)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model_0.pt", "model_2.pt"]
    assert torch.load(tmp_path / "model_2.pt").keys() == model.state_dict().keys()


def test_rotary_heads_are_not_refactored():
    with pytest.raises(ValueError, match="rotary"):
        HookedTransformer.from_pretrained("nnzoo/tiny-llama", refactor_factored_attn_matrices=True)
