"""The tree of modules: names, order, text and errors, against transformers' own modules."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn

from families import PLAIN, folder, ids, settings_of, theirs
from nnzoo import LanguageModel

FAMILIES = dict(PLAIN)
BLOCKS = {"gpt2": "transformer.h", "llama": "model.layers", "mistral": "model.layers"}


def model_of(family: str, **arguments: Any) -> LanguageModel:
    return LanguageModel(folder(family, FAMILIES[family]), **arguments)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return model_of("gpt2")


class TestModules:
    @ids(PLAIN)
    def test_names_and_order_are_those_of_transformers(self, family: str, setting: str) -> None:
        ours, model = model_of(family), theirs(family, setting)
        assert [name for name, _ in ours.named_modules()] == [name for name, _ in model.named_modules()]
        assert [name for name, _ in ours.named_children()] == [name for name, _ in model.named_children()]
        block = ours.get(BLOCKS[family])[1]
        there = model.get_submodule(f"{BLOCKS[family]}.1")
        assert [name for name, _ in block.named_modules()] == [name for name, _ in there.named_modules()]
        assert [one.path for one in block.children()] == [f"{block.path}.{n}" for n, _ in there.named_children()]

    @ids(PLAIN)
    def test_every_module_is_found_by_its_name(self, family: str, setting: str) -> None:
        model = model_of(family)
        for name, module in model.named_modules():
            assert not name or (model.get(name) == module and model.get(name).path == name)

    @ids(PLAIN)
    def test_every_native_module_is_the_one_of_hugging_face(self, family: str, setting: str) -> None:
        model = model_of(family)
        places = {module for _, module in model.named_modules()}
        names = [name for name, _ in model._model.named_modules() if name]
        assert len(names) > 20
        assert all(model.get(name) in places for name in names)
        assert model.blocks[1].attn == model.get(BLOCKS[family])[1].get("attn" if family == "gpt2" else "self_attn")

    @ids(PLAIN)
    def test_an_envoy_has_the_native_module_by_nnsights_name(self, family: str, setting: str) -> None:
        model = model_of(family)
        for name, module in model._model.named_modules():
            assert model.get(name)._module is module if name else model._module is module
        assert model.get("blocks.1.hook_resid_pre")._module is model._model.blocks[1].hook_resid_pre

    def test_where_the_native_model_has_no_module_an_error_says_what_there_is(self, model: LanguageModel) -> None:
        with pytest.raises(AttributeError, match=r"transformer is no module .* there is transformer\.wte\._module, "):
            _ = model.transformer._module
        with pytest.raises(AttributeError, match=r"h\.1\.mlp\.act is no .*; transformer\.h\.1\.mlp\.act\(value\) is"):
            _ = model.transformer.h[1].mlp.act._module
        assert not hasattr(model.transformer, "_module") and not hasattr(model, "_modules")

    def test_blocks_are_counted_sliced_and_iterated(self, model: LanguageModel) -> None:
        h = model.transformer.h
        assert len(h) == 3 and [block.path for block in h] == [f"transformer.h.{i}" for i in range(3)]
        assert h[-1].path == "transformer.h.2" and h["1"] == h[1]
        assert [block.path for block in h[::-2]] == ["transformer.h.2", "transformer.h.0"]
        assert model.get("transformer.h[2].mlp") == model.get("transformer.h.-1.mlp") == h[2].mlp
        assert h[1] in h and model.lm_head not in h
        with pytest.raises(TypeError, match="not a list"):
            len(model.transformer)

    def test_equal_places_are_one_key(self, model: LanguageModel) -> None:
        assert len({model.transformer.h[1].attn, model.blocks[1].attn, model.blocks[-2].attn}) == 1
        assert model.blocks[1].hook_resid_post == model.transformer.h[1].hook_resid_post != model.transformer.h[1]

    def test_names_are_completed(self, model: LanguageModel) -> None:
        block = model.transformer.h[0]
        assert {"attn", "ln_1", "hook_resid_post", "output", "skip", "named_parameters"} <= set(dir(block))
        assert {"transformer", "lm_head", "blocks", "hook_embed", "trace", "tokenizer"} <= set(dir(model))
        assert "weight" in dir(model.lm_head)
        assert model.transformer.h._ipython_key_completions_() == [0, 1, 2]


def without_hooks(text: str) -> str:
    return "\n".join(line for line in text.split("\n") if not line.strip().startswith("hook_"))


SIZES = """in_features out_features nf nx num_embeddings embedding_dim eps normalized_shape variance_epsilon head_dim
    num_heads embed_dim split_size layer_idx num_key_value_groups""".split()


class TestSizes:
    @ids(PLAIN)
    def test_modules_have_the_numbers_that_transformers_keeps_there(self, family: str, setting: str) -> None:
        model, other = LanguageModel(folder(family, setting)), theirs(family, setting)
        found = {name: module for name, module in other.named_modules() if name}
        for path, module in found.items():
            ours = model.get(path)
            for name in SIZES:
                assert getattr(ours, name, None) == getattr(module, name, None), f"{path}.{name}"
        assert not model.dispatched


class TestText:
    @ids(settings_of())
    def test_without_its_hook_points_it_is_the_text_of_transformers(self, family: str, setting: str) -> None:
        assert without_hooks(str(LanguageModel(folder(family, setting)))) == str(theirs(family, setting))

    @ids(PLAIN)
    def test_every_hook_point_is_there_with_its_shape(self, family: str, setting: str) -> None:
        model = model_of(family)
        lines = re.findall(r"(hook_\w+)  +\[(.*)\]", str(model))
        expected = [n for n in model._model.hook_points if not n.startswith(("blocks.1.", "blocks.2."))]
        assert sorted(name for name, _ in lines) == sorted(name.rpartition(".")[2] for name in expected)
        assert ("hook_pattern", "batch, head=4, query, key") in lines

    def test_hook_points_stand_in_the_order_in_which_they_fire(self) -> None:
        model, fired = model_of("llama"), []
        for name, point in model._model.blocks[1].attn.__dict__.items():
            if name.startswith("hook_"):
                point.add_reader(lambda value, point: fired.append(point.name.rpartition(".")[2]))
        model(torch.tensor([[1, 2, 3]]))
        assert re.findall(r"(hook_\w+)  ", str(model.model.layers[1].self_attn)) == fired

    def test_a_part_prints_its_part(self, model: LanguageModel) -> None:
        part = theirs("gpt2", "default").transformer.h[1]
        assert without_hooks(str(model.transformer.h[1])) == str(part)
        assert repr(model.transformer.h[1].attn.hook_z) == (
            "HookPoint(transformer.h.1.attn.hook_z: [batch, pos, head=4, d_head=12])"
        )
        assert str(model.blocks[1].mlp).startswith("MLP(") and "(up): Conv1D(nf=192, nx=48)" in str(model.blocks[1].mlp)

    def test_no_weights_are_read(self) -> None:
        model = model_of("llama")
        str(model), list(model.named_modules()), dir(model.model), model.dtype, model.device
        assert model._native is None

    def test_the_native_model_prints_as_it_does(self, model: LanguageModel) -> None:
        assert "(qkv): Conv1D()" in str(model._model)
        assert dict(model._model.named_modules())["blocks.1.attn"] is model._model.blocks[1].attn


class TestNamesThatAreNotThere:
    @pytest.mark.parametrize(
        ("ask", "hint"),
        [
            ("model.transfomer", "did you mean transformer"),
            ("model.transformer.h[0].atn", "did you mean attn"),
            ("model.transformer.h[0].ouput", "did you mean output"),
            ("model.transformer.h[0].attn.hook_patern", "did you mean hook_pattern"),
            ("model.blocks[0].hook_resid_pst", "did you mean hook_resid_post"),
            ("model.tokeniser", "did you mean tokenizer"),
            ("model.lm_head.wieght", "did you mean weight"),
            ("model.get('transformer.h.0.mlpp')", "did you mean mlp"),
            ("model.transformer.h[0].xyzzy", "it has ln_1, attn, ln_2, mlp"),
            ("model.transformer.h.xyzzy", r"a list of 3 modules: transformer.h\[0\]"),
            ("model.transformer.h.output", r"never called itself; ask transformer.h\[0\].output"),
            ("model.transformer.h.input", "never called itself"),
            ("model.transformer.h[0].half", r"model.half\(\)"),
            ("model.transformer.h[0].source", "its hook points: hook_resid_pre"),
        ],
    )
    def test_an_error_says_what_there_is(self, model: LanguageModel, ask: str, hint: str) -> None:
        with pytest.raises(AttributeError, match=hint):
            eval(ask, {"model": model})

    @pytest.mark.parametrize("where", ["transformer.h.0", "lm_head"])
    def test_what_cannot_be_set_says_what_can(self, model: LanguageModel, where: str) -> None:
        with pytest.raises(AttributeError, match=r"did you mean \.output"):
            model.get(where).ouput = 1
        with pytest.raises(AttributeError, match=r"what can is \.output"):
            model.get(where).something = 1
        with pytest.raises(AttributeError, match=r"did you mean \.output"):
            model.ouput = 1

    def test_a_parameter_is_edited_and_not_replaced(self, model: LanguageModel) -> None:
        with pytest.raises(AttributeError, match="edit it in place"):
            model.lm_head.weight = torch.zeros(97, 48)
        with pytest.raises(ValueError, match="there already"):
            model.lm_head.weight = nn.Linear(48, 97)

    def test_a_module_is_not_replaced_and_the_error_says_how_another_takes_its_place(self) -> None:
        model = model_of("gpt2")
        block = model.transformer.h[1]
        with pytest.raises(ValueError, match=r"h\.1\.mlp is part .* \.mlp\.output = yours\(\.mlp\.input\)"):
            block.mlp = nn.Tanh()
        block.yours = nn.Tanh()
        with model.edit() as edited:
            into = edited.transformer.h[1].mlp.input
            edited.transformer.h[1].mlp.output = edited.transformer.h[1].yours(into)
        with edited.trace([[3, 1, 4]]):
            went_in, came_out = edited.transformer.h[1].mlp.input, edited.transformer.h[1].mlp.output
        torch.testing.assert_close(came_out, went_in.tanh())


RENAME = {"transformer.h": "layers", "model.layers": "layers", "attn": "self_attn", "mlp": ["feedforward", "ff"]}


class TestFurtherNames:
    def test_they_lead_to_the_same_places_and_the_old_ones_stay(self) -> None:
        model = model_of("gpt2", rename={**RENAME, "transformer": "model", "attn.hook_pattern": "pattern"})
        block = model.transformer.h[2]
        assert model.layers[2].feedforward == model.layers[-1].ff == block.mlp == model.model.h[2].mlp
        assert model.layers[2].self_attn == block.attn and block.pattern == block.attn.hook_pattern
        assert "layers" in dir(model) and "ff" in dir(block)

    def test_one_dictionary_serves_several_families(self) -> None:
        rename = {"transformer.h": "layers", "model.layers": "layers", "attn": "att", "self_attn": "att"}
        for family, _ in PLAIN:
            model = model_of(family, rename=rename)
            assert model.layers[1].att == model.blocks[1].attn

    def test_a_star_stands_for_any_name_and_a_dotted_alias_hangs_below(self) -> None:
        model = model_of("gpt2", rename={"*.h": "layers", "attn.c_proj": "attn.o_proj", "mlp.c_proj": "mlp.down_proj"})
        block = model.layers[0]
        assert block.attn.o_proj == block.attn.c_proj and block.mlp.down_proj == block.mlp.c_proj
        with pytest.raises(AttributeError):
            _ = block.attn.down_proj

    def test_one_block_can_have_a_name(self) -> None:
        assert model_of("gpt2", rename={"transformer.h.1.mlp": "middle"}).middle.path == "transformer.h.1.mlp"

    def test_a_name_that_is_its_own_changes_nothing(self) -> None:
        assert (
            model_of("gpt2", rename={"attn": "attn", "self_attn": "attn"}).transformer.h[0].attn.path.endswith("attn")
        )

    def test_they_are_printed_beside_the_old_ones(self) -> None:
        text = str(model_of("gpt2", rename={"attn": ["self_attn", "att"]}))
        assert "(self_attn/att/attn): GPT2Attention(" in text

    @pytest.mark.parametrize(
        ("rename", "complaint"),
        [
            ({"attn": "mlp"}, "is a module, hook point or parameter there already"),
            ({"attn": "hook_resid_pre"}, "is a module, hook point or parameter there already"),
            ({"attn": "output"}, "is what every module answers to"),
            ({"transformer.h": "config"}, "is what every module answers to"),
            ({"transformer.h": "order"}, "is what every module answers to"),
            ({"attn": "x", "mlp": "x"}, "is the alias of 'attn' there already"),
            ({"*.*": "x"}, "several modules"),
            ({"attn": "a b"}, "no name"),
            ({"attn": "_x"}, "no name"),
            ({"attn": "mlp.x"}, "has to begin as the path does"),
            ({"transformer.hh": "layers"}, "leads to no module of this model; did you mean transformer.h"),
            ({"transformer.h.7": "last"}, "leads to no module"),
        ],
    )
    def test_what_cannot_be_is_refused(self, rename: dict, complaint: str) -> None:
        with pytest.raises(ValueError, match=re.escape(complaint)):
            model_of("gpt2", rename=rename)


def test_a_copy_of_a_model_is_its_own_root(model: LanguageModel) -> None:
    other = copy.copy(model)
    assert other.transformer.h[1]._root is other and other.transformer.h[1] != model.transformer.h[1]


@pytest.mark.parametrize(
    ("path", "tensor"),
    [("transformer.h.0.mlp", "transformer.h.0.mlp.output"), ("transformer.h.0", "transformer.h.0.output[0]"),
     ("transformer.h", "transformer.h.0.output[0]"), ("", "model.output")],
)  # fmt: skip
@pytest.mark.parametrize("name", ["save", "shape", "mean"])
def test_a_module_taken_for_its_tensor_names_it(model: LanguageModel, path: str, tensor: str, name: str) -> None:
    module = model.get(path) if path else model
    with pytest.raises(AttributeError, match=re.escape(f"no tensor and has no '{name}'; the tensor is {tensor}") + "$"):
        getattr(module, name)


def test_a_path_that_begins_with_model_hears_where_paths_begin(model: LanguageModel) -> None:
    with pytest.raises(AttributeError, match="no module 'model'; paths begin with transformer or lm_head"):
        model.get("model.transformer.h[1]")


@pytest.mark.parametrize("change", ["h[1] = torch.nn.Identity()", "del h[1]", "h[-1] = None"])
def test_a_block_is_not_replaced_and_the_error_says_what_to_do(change):
    model = LanguageModel(folder("gpt2", "default"))
    with pytest.raises(
        TypeError, match=r"transformer\.h\[-?1\] cannot be set or deleted.*\.output = .*\.skip\(value\)"
    ):
        exec(change, {"h": model.transformer.h, "torch": torch})
