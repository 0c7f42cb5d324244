"""What is no prompt is refused by name, and says what to do; whatever is not refused, a model can run."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from families import D_VOCAB, folder
from nnzoo import LanguageModel
from nnzoo.prompt_names import KEYWORDS
from nnzoo.prompts import IGNORED, loss_of, read_prompt
from prompt_readers import D_MODEL, LETTERS

BATCH = [[3, 1, 4], [1, 5, 9]]
MESSAGE = {"role": "user", "content": "Mary"}
EMBEDS = torch.zeros(1, 3, D_MODEL)
# what is given, and what the error has to name
REFUSED: dict[str, tuple[tuple[Any, ...], Mapping[str, Any], list[str]]] = {
    "nothing": ((), {}, ["no prompt was given", "a text or a list of texts", "messages"]),
    "only_a_mask": ((), {"attention_mask": [1]}, ["no prompt was given, only attention_mask"]),
    "two": (([1], [2]), {}, ["not 2", "[prompt, prompt]"]),
    "number": ((3,), {}, ["int: 3", "ids [pos] or [batch pos]"]),
    "set": (({1},), {}, ["set: {1}"]),
    "bytes": ((b"The",), {}, ["bytes: b'The'"]),
    "no_ids": (([],), {}, ["empty", "at least one"]),
    "no_ids_in_a_tensor": ((torch.zeros(0, dtype=torch.long),), {}, ["empty", "[1, 0]"]),
    "no_prompts": ((torch.zeros(0, 4, dtype=torch.long),), {}, ["empty", "[0, 4]"]),
    "empty_row": (([[1], []],), {}, ["prompt 1 of 2 is empty"]),
    "empty_dict": (({},), {}, ["no prompt was given"]),
    "too_large": (([[3, D_VOCAB]],), {}, ["0 to 96", "3 to 97", "another tokenizer"]),
    "negative": ((torch.tensor([-1, 3]),), {}, ["0 to 96", "-1 to 3"]),
    "huge": (([2**70],), {}, ["input_ids [1180591620717411303424]", "Overflow"]),
    "float": (([1.5, 2],), {}, ["integers", "float32"]),
    "float_tensor": ((torch.zeros(1, 3),), {}, ["integers", "float32 [1, 3]"]),
    "float_array": ((np.zeros(3),), {}, ["integers", "float64 [3]"]),
    "bool": (([True, False],), {}, ["integers", "bool"]),
    "bool_among_ids": (([True, 2],), {}, ["[True, 2]", "True or False among numbers"]),
    "bool_row": (([[True], [1, 2]],), {}, ["integers", "bool [1]"]),
    "three_axes": ((torch.zeros(1, 2, 3, dtype=torch.long),), {}, ["[batch pos] or [pos]", "[1, 2, 3]"]),
    "three_deep": (([[[1]]],), {}, ["[pos] or [batch pos]", "[1, 1]"]),
    "one_number": ((torch.tensor(3),), {}, ["[batch pos] or [pos]", "torch.int64 []"]),
    "row_and_number": (([[1], 2],), {}, ["input_ids has lists beside 2"]),
    "text_among_ids": (([1, "a"],), {}, ["input_ids [1, 'a'] cannot be read as numbers"]),
    "ids_among_text": ((["a", 1],), {}, ["['a', 1] is neither all text, nor all ids"]),
    "text_among_messages": (([[MESSAGE], "a"],), {}, ["neither all text", "messages with a role"]),
    "a_message": ((MESSAGE,), {}, ["role='user'", "trace([message])"]),
    "ids_twice": (([1],), {"input_ids": [2]}, ["input_ids came twice"]),
    "mask_twice": (
        ({"input_ids": [1], "attention_mask": [1]},),
        {"attention_mask": [1]},
        ["attention_mask came twice"],
    ),
    "nested_twice": ((), {"input_ids": {"input_ids": [1]}}, ["a tokenizer's whole output", "**output"]),
    "unlike_outputs": (([{"input_ids": [1]}, {"ids": [1]}],), {}, ["prompt 0", "prompt 1 has ['ids']"]),
    "typo": (([1],), {"atention_mask": [1]}, ["'atention_mask'", "did you mean attention_mask"]),
    "typo_in_a_dict": (({"inputs_ids": [1]},), {}, ["'inputs_ids'", "did you mean input_ids"]),
    "unheard_of": (([1],), {"zzz": 1}, ["'zzz'", *KEYWORDS]),
    "hidden_states": (([1],), {"output_hidden_states": True}, ["output_hidden_states=True", "hook_resid_post"]),
    "attentions": (([1],), {"output_attentions": True}, ["output_attentions=True", "attn.hook_pattern"]),
    "tuples": (([1],), {"return_dict": False}, ["return_dict=False", "logits"]),
    "use_cache": (([1],), {"use_cache": "static"}, ["use_cache='static'", "True or False"]),
    "cache": (([1],), {"past_key_values": object()}, ["past_key_values=", "model._model(ids, cache=...)"]),
    "logits_to_keep": (([1],), {"logits_to_keep": 1}, ["logits_to_keep=1", "model.output[:, -1:]"]),
    "heads": (([1],), {"head_mask": torch.ones(3, 4)}, ["head_mask=", "attn.hook_z"]),
    "steps": (([1],), {"max_new_tokens": 3}, ["max_new_tokens=3", "model.generate(prompt"]),
    "encoder": (([1],), {"encoder_hidden_states": EMBEDS}, ["encoder_hidden_states=", "one sequence"]),
    "truncation": (([1],), {"truncation": True}, ["truncation=True", "model.tokenizer(text"]),
    "offsets": (({"input_ids": [1], "offset_mapping": [(0, 1)]},), {}, ["offset_mapping=", "leave it out"]),
    "short_mask": ((BATCH,), {"attention_mask": [[1, 1]] * 2}, ["attention_mask", "[2, 2]", "[2, 3]"]),
    "mask_of_one_row": ((BATCH,), {"attention_mask": [1, 1, 1]}, ["attention_mask", "[1, 3]", "[2, 3]"]),
    "mask_of_queries": (([1, 2],), {"attention_mask": torch.ones(1, 1, 2, 2)}, ["[1, 1, 2, 2]", "[1, 2]"]),
    "mask_of_nothing": ((BATCH,), {"attention_mask": [[1, 1, 1], [0, 0, 0]]}, ["row 1 of attention_mask is all 0"]),
    "added_mask": (([1, 2],), {"attention_mask": [0, -torch.inf]}, ["[-inf, 0.0]", "hook_attn_scores"]),
    "counting_mask": (([1, 2],), {"attention_mask": torch.tensor([1, 2])}, ["has [1, 2]", "1 at tokens"]),
    "text_mask": (([1, 2],), {"attention_mask": "11"}, ["attention_mask", "str, '11'"]),
    "mask_beside_text": (("a b",), {"attention_mask": [1, 1, 1]}, ["padded here", "pass token ids with one"]),
    "mask_of_padded": (([[1, 2], [3]],), {"attention_mask": [[1, 1]] * 2}, ["no attention_mask", "[2, 1]"]),
    "ragged_mask": ((BATCH,), {"attention_mask": [[1] * 3, [1]]}, ["attention_mask", "lengths [3, 1]", "3 tokens"]),
    "types": (([1, 2],), {"token_type_ids": [0, 1]}, ["token_type_ids are not all 0", "leave them out"]),
    "types_of_another_shape": (([1, 2],), {"token_type_ids": [0]}, ["token_type_ids", "[1, 1]", "[1, 2]"]),
    "positions": (
        (BATCH,),
        {"attention_mask": [[1, 1, 1], [0, 1, 1]], "position_ids": [0, 1, 2]},
        ["position_ids of row 1 are [1, 2]", "no padding: [0, 1]", "hook_positions"],
    ),
    "positions_of_another_shape": (([1, 2],), {"position_ids": [0]}, ["position_ids are [1, 1]", "[1, 2]"]),
    "embeds_and_ids": (([1],), {"inputs_embeds": EMBEDS}, ["inputs_embeds", "leave one out"]),
    "embeds_of_another_width": ((), {"inputs_embeds": EMBEDS[..., :3]}, ["[batch pos 8]", "[1, 3, 3]"]),
    "embeds_of_another_dtype": ((), {"inputs_embeds": EMBEDS.double()}, ["float64", "embeds.to(torch.float32)"]),
    "embeds_of_no_token": ((), {"inputs_embeds": EMBEDS[:, :0]}, ["empty", "[1, 0, 8]"]),
    "embeds_in_a_list": ((), {"inputs_embeds": [[0.0] * 8]}, ["inputs_embeds is a tensor", "list"]),
    "long_embeds": ((), {"inputs_embeds": torch.zeros(1, 13, 8)}, ["13 tokens", "12 positions"]),
    "long_ids": (([1] * 13,), {}, ["13 tokens", "12 positions", "shorten"]),
    "labels_of_another_shape": (([1, 2],), {"labels": [1, 2, 3]}, ["labels", "[1, 3]", "[1, 2]"]),
    "float_labels": (([1, 2],), {"labels": [0.5, 1]}, ["labels are integers", "float32"]),
    "labels_out_of_vocabulary": (([1, 2],), {"labels": [1, 97]}, ["labels run from 0 to 96, or are -100", "1 to 97"]),
    "other_ignored_labels": (([1, 2],), {"labels": [1, -1]}, ["labels run from 0 to 96, or are -100", "-1 to 1"]),
    "no_label": (([1, 2],), {"labels": [1, IGNORED]}, ["no label counts"]),
    "labels_of_one_token": (([1],), {"labels": [1]}, ["no label counts", "first of its prompt"]),
    "labels_of_padded": (([[1, 2], [3]],), {"labels": torch.ones(2, 2, dtype=torch.long)}, ["no labels but", "[2, 1]"]),
    "labels_of_others": (([[1, 2], [3]],), {"labels": [[1], [2, 3]]}, ["no labels but", "[2, 1]"]),
    "labels_at_padding": (
        (BATCH,),
        {"attention_mask": [[1, 1, 1], [0, 1, 1]], "labels": BATCH},
        ["row 1 of labels", "padding", "-100"],
    ),
}


@pytest.mark.parametrize(("args", "kwargs", "named"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_prompt_is_refused_by_name(args: tuple, kwargs: dict, named: list[str]) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        read_prompt(LETTERS, *args, **kwargs)
    for name in named:
        assert name in str(caught.value)


def test_text_without_tokens_is_refused() -> None:
    for ask in ("", ["a", ""], {"input_ids": ""}):
        with pytest.raises(ValueError, match="the text '' is empty"):
            read_prompt(LETTERS, ask)


def test_text_that_is_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the tokenizer cannot read '\\ud800'"):
        LanguageModel("nnzoo/tiny-gpt2").trace("\ud800")


def test_messages_without_a_template_say_how_to_give_one() -> None:
    with pytest.raises(ValueError, match=r"none: write .* as one text, or set model\.tokenizer\.chat_template"):
        read_prompt(LETTERS, [{"role": "user", "content": "The cat"}])


def test_a_tokenizer_that_is_not_there_is_asked_for_text_only() -> None:
    with pytest.raises(ValueError, match="has no tokenizer: pass token ids, or set"):
        LanguageModel(folder("gpt2", "default")).trace("The")


# --- anything at all -------------------------------------------------------------------------------------------------

LEAVES = st.none() | st.booleans() | st.integers(-2, D_VOCAB + 1) | st.floats() | st.text(max_size=3)
NAMES = st.sampled_from([*KEYWORDS, "role", "use_cache", "ids"])
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)
ARRAYS = st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=2), max_size=3).flatmap(
    lambda rows: st.sampled_from([np.array(rows), torch.tensor(rows), np.array(rows, dtype="uint8"), rows])
)


@settings(max_examples=300)
@given(args=st.lists(ANYTHING | ARRAYS, max_size=2), kwargs=st.dictionaries(NAMES, ANYTHING | ARRAYS, max_size=3))
def test_anything_is_a_prompt_that_a_model_can_run_or_refused(args: list, kwargs: dict) -> None:
    try:
        read = read_prompt(LETTERS, *args, **kwargs)
    except (TypeError, ValueError):
        return
    assert read.tokens.numel() and 0 <= int(read.tokens.min()) <= int(read.tokens.max()) < D_VOCAB
    mask = read.attention_mask
    assert mask is None or (mask.shape == read.tokens.shape and mask.any(-1).all() and not mask.all())
    assert read.labels is None or loss_of(torch.zeros(*read.tokens.shape, D_VOCAB), read.labels).isfinite()
