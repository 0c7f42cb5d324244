"""HookedTransformer over nnzoo's models: loading, hooks, caches, weights, refusals; next to transformers."""

import copy

import pytest
import torch

import nnzoo.transformer_lens as transformer_lens
from families import BIASED, error, folder, ids, ours, prompt, theirs
from nnzoo.processing import process_weights
from nnzoo.transformer_lens import (
    FactoredMatrix,
    HookedRootModule,
    HookedTransformer,
    HookedTransformerConfig,
    HookPoint,
    TransformerLensKeyValueCache,
    evals,
    patching,
    utils,
)
from nnzoo.transformer_lens.slices import Slice

EXACT = {"dtype": torch.float64, "device": "cpu"}
TEXT = "The capital of France is Paris."


@pytest.fixture(scope="module")
def tiny():
    return HookedTransformer.from_pretrained("nnzoo/tiny-gpt2", device="cpu")


@pytest.fixture(autouse=True)
def no_hooks_left(tiny):
    yield
    assert not tiny.list_hooks()


# --- loading -------------------------------------------------------------------------------------------------------


@ids(BIASED)
def test_unprocessed_logits_are_those_of_transformers(family, setting):
    model = HookedTransformer.from_pretrained_no_processing(folder(family, setting), **EXACT)
    tokens = prompt(2, 9)
    assert error(model(tokens), theirs(family, setting)(tokens).logits) < 1e-10


@ids(BIASED)
def test_a_model_of_transformers_in_memory_is_taken(family, setting):
    model = HookedTransformer.from_pretrained("mine", hf_model=theirs(family, setting), fold_ln=False, **EXACT)
    assert (
        error(model(prompt(2, 9)).log_softmax(-1), theirs(family, setting)(prompt(2, 9)).logits.log_softmax(-1)) < 1e-9
    )


@ids(BIASED)
def test_processing_is_that_of_nnzoo(family, setting):
    model = HookedTransformer.from_pretrained(folder(family, setting), **EXACT)
    processed = process_weights(ours(family, setting))
    torch.testing.assert_close(model(prompt(2, 9)), processed(prompt(2, 9)), rtol=0, atol=0)
    assert model.cfg.normalization_type == ("LNPre" if family == "gpt2" else "RMSPre")


@ids(BIASED)
def test_some_of_the_steps_can_be_left_out(family, setting):
    model = HookedTransformer.from_pretrained(folder(family, setting), center_unembed=False, **EXACT)
    assert error(model(prompt(2, 9)), theirs(family, setting)(prompt(2, 9)).logits) < 1e-9


def test_the_first_layers_and_positions_of_a_model():
    whole, tokens = HookedTransformer.from_pretrained(folder("gpt2", "default"), **EXACT), prompt(2, 9)
    model = HookedTransformer.from_pretrained(folder("gpt2", "default"), first_n_layers=2, n_ctx=9, **EXACT)
    torch.testing.assert_close(model(tokens), whole.unembed(whole.ln_final(whole(tokens, stop_at_layer=2))))
    assert (model.cfg.n_layers, model.cfg.n_ctx, list(model.W_pos.shape)) == (2, 9, [9, 48])
    with pytest.raises(ValueError, match="9 positions"):
        model(prompt(1, 10))


def test_a_change_of_the_embedding_leaves_the_unembedding():
    model = HookedTransformer.from_pretrained_no_processing("nnzoo/tiny-gpt2", device="cpu")
    before = model.W_U.detach().clone()
    with torch.no_grad():
        model.W_E.zero_()
    assert torch.equal(model.W_U, before)


REFUSED = {
    "n_devices": 2,
    "checkpoint_index": 3,
    "load_in_8bit": True,
    "no_such_argument": 7,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_loading_does_not_follow_is_refused_by_name(name):
    with pytest.raises((NotImplementedError, TypeError), match=name.removesuffix("_index")):
        HookedTransformer.from_pretrained("nnzoo/tiny-gpt2", **{name: REFUSED[name]})


SIZES = {"n_layers": 1, "d_model": 8, "n_ctx": 6, "d_head": 4, "d_vocab": 11, "device": "cpu"}
LLAMA = {"normalization_type": "RMS", "positional_embedding_type": "rotary", "gated_mlp": True, "act_fn": "silu"}
UNKNOWN = [
    {"positional_embedding_type": "alibi"},
    {"normalization_type": "LN", "final_rms": True},
    {"n_key_value_heads": 1},
    {"parallel_attn_mlp": True},
    {"attention_dir": "backwards"},
    {"init_mode": "zeros"},
    {"attn_types": ["local"], "window_size": 3, "use_local_attn": True},
    {**LLAMA, "rotary_dim": 2},
    {**LLAMA, "attn_only": True},
    {**LLAMA, "d_vocab_out": 3},
    {**dict(reversed(LLAMA.items())), "normalization_type": None},
    {**LLAMA, "use_local_attn": True, "window_size": 3, "attn_types": ["global"]},
    {**LLAMA, "use_qk_norm": True},
]


@pytest.mark.parametrize("fields", UNKNOWN, ids=lambda fields: list(fields)[-1])
def test_a_config_that_no_family_has_is_refused_by_name(fields):
    with pytest.raises(NotImplementedError, match=f"^{list(fields)[-1]}="):
        HookedTransformer(HookedTransformerConfig(**{**SIZES, **fields}))


@pytest.mark.parametrize("make", [HookedTransformerConfig, lambda **fields: HookedTransformer(fields)])
def test_a_field_that_there_is_not_names_the_nearest(make):
    with pytest.raises(TypeError, match="no field 'd_modell'; did you mean d_model"):
        make(**SIZES, d_modell=8)
    with pytest.raises(TypeError, match=r"no field 'xyzzy'$"):
        make(**SIZES, xyzzy=8)


@pytest.mark.parametrize("name", ["HookedEncoder", "TransformerBridge", "HookedAudioEncoder"])
def test_what_is_not_there_says_what_to_do(name):
    with pytest.raises(NotImplementedError, match=f"{name} is not here: "):
        getattr(transformer_lens, name).from_pretrained("bert")
    with pytest.raises(NotImplementedError, match="evaluate_on_dataset"):
        evals.make_wiki_data_loader(None)
    with pytest.raises(NotImplementedError, match="datasets"):
        utils.get_dataset("pile")
    with pytest.raises(AttributeError):
        transformer_lens.no_such_name


# --- hooks and caches ----------------------------------------------------------------------------------------------


def test_a_cache_has_what_a_flag_switches_on_and_a_name_asks_for(tiny):
    _, cache = tiny.run_with_cache(TEXT)
    assert "blocks.0.attn.hook_result" not in cache
    _, asked = tiny.run_with_cache(TEXT, names_filter="blocks.0.attn.hook_result")
    tiny.set_use_attn_result(True)
    _, switched_on = tiny.run_with_cache(TEXT)
    tiny.set_use_attn_result(False)
    torch.testing.assert_close(switched_on["result", 0], asked["result", 0])
    torch.testing.assert_close(asked["result", 0].sum(2) + tiny.b_O[0], cache["attn_out", 0])


def test_a_name_that_means_nothing_says_what_is_near(tiny):
    for names in ("blocks.0.attn.hook_patern", ["blocks.0.attn.hook_patern"]):
        with pytest.raises(KeyError, match=r"blocks\.0\.attn\.hook_pattern"):
            tiny.run_with_cache(TEXT, names_filter=names)
    with pytest.raises(KeyError, match="accepts none"):
        tiny.run_with_hooks(TEXT, fwd_hooks=[(lambda name: False, print)])


def test_hooks_stay_where_they_are_told_to(tiny):
    seen = []

    def keep(value, hook):
        hook.ctx["seen"] = True
        seen.append(hook.name)

    tiny.run_with_hooks(TEXT, fwd_hooks=[("hook_embed", keep)], reset_hooks_end=False)
    point = tiny.blocks[1].hook_resid_mid
    point.add_perma_hook(keep)
    assert [len(tiny.list_hooks(name)) for name in ("hook_embed", point.name)] == [1, 1]
    tiny(TEXT)
    tiny.reset_hooks()
    tiny(TEXT)
    assert seen == ["hook_embed", "hook_embed", point.name, point.name]
    assert point.has_hooks("fwd") and not point.has_hooks("fwd", including_permanent=False)
    assert point.fwd_hooks[0].user_hook is keep and not point.bwd_hooks
    tiny.reset_hooks(including_permanent=True)
    assert not point.ctx


def test_hook_points_of_a_model_are_hook_points(tiny):
    assert isinstance(tiny.hook_dict["hook_embed"], HookPoint)
    assert isinstance(HookPoint(), torch.nn.Module)
    assert tiny.mod_dict["blocks.1.attn"] is tiny.blocks[1].attn
    assert not isinstance(tiny.blocks[1].attn, HookPoint)


def test_gradients_go_through_backward_hooks_that_change_them(tiny):
    with tiny.hooks(bwd_hooks=[("blocks.2.hook_resid_post", lambda gradient, hook: gradient * 0)]):
        tiny(TEXT, return_type="loss").backward()
    assert not tiny.native.blocks[1].mlp.up.weight.grad.any()
    assert tiny.native.blocks[3].mlp.up.weight.grad.any()
    tiny.zero_grad()


def test_a_slice_is_taken_as_one(tiny):
    _, cache = tiny.run_with_cache(TEXT)
    for pos_slice in (-1, (1, 4), [0, 2]):
        plain, sliced = (cache.decompose_resid(pos_slice=one) for one in (pos_slice, Slice(pos_slice)))
        assert torch.equal(plain, sliced)
    assert torch.equal(cache.apply_slice_to_batch_dim(Slice(0))["q", 1], cache["q", 1][0])
    assert tiny.run_with_cache(TEXT, pos_slice=Slice((0, 2)))[1]["q", 1].shape[1] == 2


class Toy(HookedRootModule):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.hook_out = HookPoint()
        self.setup()

    def forward(self, x):
        return self.hook_out(self.linear(x))


def test_a_toy_model_can_be_told_what_may_be_hooked():
    class Careful(Toy):
        def check_hooks_to_add(self, hook_point, hook_point_name, hook, **options):
            raise RuntimeError(f"not at {hook_point_name}")

    with pytest.raises(RuntimeError, match="not at hook_out"):
        Careful().add_hook("hook_out", print)
    with pytest.raises(KeyError, match="hook_out"):
        Toy().add_hook("hook_oui", print)


def test_pytorchs_own_hooks_work_at_a_hook_point():
    toy, seen = Toy(), []
    toy.hook_out.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    _, cache = toy.run_with_cache(torch.ones(2, 5, 4), pos_slice=-1)
    assert seen == [(2, 5, 4)] and cache["hook_out"].shape == (2, 1, 4)


# --- weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama"])
def test_weights_that_are_set_are_those_that_run(name):
    model = HookedTransformer.from_pretrained(f"nnzoo/{name}", device="cpu")
    before = model(TEXT)
    with torch.no_grad():
        model.blocks[1].attn.W_O[2] = 0
        model.blocks[1].mlp.W_out = torch.zeros_like(model.blocks[1].mlp.W_out)
    hooks = [("blocks.1.attn.hook_z", lambda z, hook: z.index_fill(2, torch.tensor([2]), 0))]
    hooks.append(("blocks.1.hook_mlp_out", lambda out, hook: out * 0 + model.b_out[1]))
    other = HookedTransformer.from_pretrained(f"nnzoo/{name}", device="cpu")
    torch.testing.assert_close(model(TEXT), other.run_with_hooks(TEXT, fwd_hooks=hooks))
    assert (model(TEXT) - before).abs().max() > 0.1


def test_what_cannot_be_set_says_so():
    model = HookedTransformer.from_pretrained("nnzoo/tiny-llama", device="cpu")
    with pytest.raises(ValueError, match="_W_K"):
        model.blocks[0].attn.W_K = torch.ones_like(model.blocks[0].attn.W_K)
    with pytest.raises(AttributeError, match="runs its own parts"):
        model.ln_final = torch.nn.Identity()
    with pytest.raises(AttributeError, match=r"runs its own parts\. .* a hook can give back .* at hook_mlp_out"):
        model.blocks[0].mlp = torch.nn.Identity()
    with pytest.raises(AttributeError, match="folded"):
        model.ln_final.w
    assert not hasattr(model, "W_pos")


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama"])
def test_a_state_dict_makes_the_same_model(name):
    model = HookedTransformer.from_pretrained(f"nnzoo/{name}", device="cpu", fold_ln=False)
    other = HookedTransformer(HookedTransformerConfig(**{**vars(model.cfg), "init_weights": True}))
    assert other.load_state_dict(model.state_dict()) == ([], [])
    other.tokenizer = model.tokenizer
    torch.testing.assert_close(other(TEXT), model(TEXT))
    with pytest.raises(RuntimeError, match=r"embed\.W_E"):
        other.load_state_dict({})


def test_composition_is_that_of_factored_matrices(tiny):
    scores = utils.composition_scores(tiny.OV, tiny.QK.T)
    later = torch.arange(4)[:, None] < torch.arange(4)
    torch.testing.assert_close(scores * later[:, None, :, None], tiny.all_composition_scores("K"))
    one = FactoredMatrix(tiny.W_V[0, 1], tiny.W_O[0, 1])
    torch.testing.assert_close(one.svd()[1], torch.linalg.svdvals(one.AB)[:24], rtol=1e-4, atol=1e-5)


def test_a_copy_is_another_model(tiny):
    other = copy.deepcopy(tiny)
    before = tiny(TEXT)
    with torch.no_grad():
        other.blocks[0].mlp.W_in.zero_()
    other.hook_dict["hook_embed"].add_hook(lambda value, hook: value * 2)
    assert torch.equal(tiny(TEXT), before) and not torch.equal(other(TEXT), before)


def test_a_model_moves_to_another_dtype():
    model = HookedTransformer.from_pretrained("nnzoo/tiny-gpt2", device="cpu").to(torch.float64)
    assert (model.cfg.dtype, model(TEXT).dtype, model.blocks[0].attn.W_Q.dtype) == (torch.float64,) * 3


# --- text and generation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_for_the_tokens(tiny, side):
    texts = [TEXT, "Mary gave"]
    together = tiny(texts, padding_side=side)
    for row, text in zip(together, texts, strict=True):
        alone = tiny(text)[0]
        part = row[-len(alone) :] if side == "left" else row[: len(alone)]
        torch.testing.assert_close(part, alone, rtol=1e-4, atol=1e-4)


def test_a_token_that_is_two_says_which(tiny):
    for kind in (AssertionError, ValueError):
        with pytest.raises(kind, match="2 tokens"):
            tiny.to_single_token(" Mary gave")
    with pytest.raises(AssertionError, match="does not occur"):
        tiny.get_token_position(" Mary", TEXT)


def test_generation_in_pieces_is_generation(tiny):
    options = {"max_new_tokens": 9, "do_sample": False, "stop_at_eos": False, "verbose": False}
    tokens = tiny.to_tokens("Mary and John")
    pieces = list(tiny.generate_stream(tokens, max_tokens_per_yield=4, **options))
    assert len(pieces) > 2
    assert torch.equal(torch.cat(pieces, dim=1), tiny.generate(tokens, **options))
    with pytest.warns(UserWarning, match="num_beams"):
        tiny.generate(tokens, num_beams=2, **options)


def test_a_frozen_cache_is_read_and_not_filled(tiny):
    cache = TransformerLensKeyValueCache.init_cache(tiny.cfg, "cpu")
    tokens = tiny.to_tokens(TEXT)
    tiny(tokens[:, :4], past_kv_cache=cache)
    cache.freeze()
    for _ in range(2):
        torch.testing.assert_close(tiny(tokens[:, 4:], past_kv_cache=cache), tiny(tokens)[:, 4:], rtol=1e-4, atol=1e-4)
    assert cache[1].past_keys.shape == (1, 4, 4, 24) and cache.previous_attention_mask.shape == (1, 4)


def test_the_logits_of_each_step_are_those_of_the_whole_text(tiny):
    tokens = tiny.to_tokens("Mary and John")
    out = tiny.generate(tokens, max_new_tokens=3, do_sample=False, output_logits=True, stop_at_eos=False, verbose=False)
    whole = tiny(out.sequences)[:, tokens.shape[1] - 1 : -1]
    torch.testing.assert_close(torch.stack(out.logits, dim=1), whole, rtol=1e-4, atol=1e-4)


# --- patching ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {**LLAMA, "n_heads": 2, "n_key_value_heads": 1}], ids=["gpt2", "llama"])
def test_a_sweep_is_a_loop_of_patches(fields):
    model = HookedTransformer(HookedTransformerConfig(**{**SIZES, **fields, "n_layers": 2, "initializer_range": 1.0}))
    clean, corrupted = torch.tensor([[1, 2, 3]]), torch.tensor([[3, 2, 1]])
    _, cache = model.run_with_cache(clean)
    run = (model, corrupted, cache, lambda logits: logits[0, -1].square().mean())
    for sweep in (patching.get_act_patch_attn_out, patching.get_act_patch_attn_head_v_by_pos):
        setter = sweep.keywords["patch_setter"]
        one_by_one = sweep(*run, patch_setter=lambda *arguments, setter=setter: setter(*arguments))
        torch.testing.assert_close(sweep(*run), one_by_one)
        with model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda out, hook: out * 2)]):
            assert (sweep(*run) - one_by_one).abs().max() > 1e-3


def test_patches_of_rows_of_a_table(tiny):
    pandas = pytest.importorskip("pandas")
    clean, corrupted = tiny.to_tokens(["Mary and John", "John and Mary"])[:, None]
    _, cache = tiny.run_with_cache(clean)
    run = (tiny, corrupted, cache, lambda logits: logits[0, -1, 5])
    whole, table = patching.get_act_patch_resid_pre(*run, return_index_df=True)
    rows = patching.generic_activation_patch(
        *run,
        patch_setter=patching.layer_pos_patch_setter,
        activation_name="resid_pre",
        index_df=pandas.DataFrame([(2, 1), (0, 3)], columns=["layer", "pos"]),
    )
    torch.testing.assert_close(rows, whole[[2, 0], [1, 3]])
    assert list(table.columns) == ["layer", "pos"] and len(table) == whole.numel()
