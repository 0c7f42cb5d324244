"""What counts as a prompt: each kind is read as transformers reads it, and gives what transformers gives."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer

from families import D_VOCAB, N_CTX, PLAIN, error, folder, ids, prompt, theirs
from nnzoo import LanguageModel
from nnzoo.architectures.attention import ContextLengthError
from nnzoo.prompts import IGNORED, Prompt, Reader, loss_of, read_prompt
from nnzoo.weights import resolve
from prompt_readers import D_MODEL, NUMBERS

TEXTS = ["The capital of France is", "Mary", "When Mary and John went to the store"]
CHAT = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "The capital of France is"}]
OTHER_CHAT = [{"role": "user", "content": "Mary"}]
TEMPLATE = (
    "<|endoftext|>{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])  # padding on the right
ROWS = prompt(3, 5)


def tokenizer(**options: Any) -> Any:
    return AutoTokenizer.from_pretrained(resolve("nnzoo/tiny-gpt2"), **options)


@pytest.fixture(scope="module")
def texts() -> Reader:
    """Reads text, as the tiny models do."""
    own = tokenizer()
    return Reader(
        lambda: own, d_vocab=len(own), d_model=D_MODEL, max_tokens=64, dtype=torch.float32, device=torch.device("cpu")
    )


@pytest.fixture(scope="module")
def chats() -> Reader:
    own = tokenizer()
    own.chat_template = TEMPLATE
    begin = TemplateProcessing(single=f"{own.bos_token} $A", special_tokens=[(own.bos_token, own.bos_token_id)])
    own.backend_tokenizer.post_processor = begin  # as LLaMA's does; the template writes the token itself
    assert own.encode("")
    return Reader(
        lambda: own, d_vocab=len(own), d_model=D_MODEL, max_tokens=64, dtype=torch.float32, device=torch.device("cpu")
    )


def check(read: Prompt, tokens: Any, mask: Any = None) -> None:
    """The prompt has these ids and this mask, in the types that it promises; all ones are no mask."""
    mask = None if mask is None or torch.as_tensor(mask).all() else torch.as_tensor(mask).bool()
    assert read.tokens.dtype == torch.long and read.tokens.tolist() == torch.as_tensor(tokens).tolist()
    assert (read.attention_mask is None) == (mask is None)
    if mask is not None:
        assert read.attention_mask.dtype == torch.bool and torch.equal(read.attention_mask, mask)


class TestText:
    @pytest.mark.parametrize(
        "ask",
        [TEXTS, tuple(TEXTS), np.array(TEXTS), np.array(TEXTS, dtype=object), TEXTS[:1], TEXTS[:2]],
        ids=["list", "tuple", "array", "objects", "one", "two"],
    )
    def test_texts_are_padded_on_the_left_as_transformers_pads_them(self, texts: Reader, ask: Any) -> None:
        wanted = tokenizer()(list(ask), padding=True, padding_side="left", return_tensors="pt")
        check(read_prompt(texts, ask), wanted["input_ids"], wanted["attention_mask"])
        check(read_prompt(texts, input_ids=ask), wanted["input_ids"], wanted["attention_mask"])

    def test_one_text_is_a_batch_of_one(self, texts: Reader) -> None:
        check(read_prompt(texts, TEXTS[0]), tokenizer()(TEXTS[0], return_tensors="pt")["input_ids"])

    def test_padding_that_the_model_has_no_embedding_for_is_0(self, texts: Reader) -> None:
        longer = tokenizer(pad_token="<pad>")
        assert longer.pad_token_id == texts.d_vocab  # added to the tokenizer alone
        assert read_prompt(replace(texts, tokenizer=lambda: longer), TEXTS[:2]).tokens[1, 0] == 0

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("tensors", ["pt", "np", None])
    @pytest.mark.parametrize("ask", [TEXTS[0], TEXTS[:1], TEXTS], ids=["text", "list_of_one", "list"])
    def test_a_tokenizers_output_is_a_prompt(self, texts: Reader, ask: Any, tensors: str | None, side: str) -> None:
        made = tokenizer()(ask, padding=True, padding_side=side, return_tensors=tensors, return_token_type_ids=True)
        wanted = tokenizer()([ask] if isinstance(ask, str) else ask, padding=True, padding_side=side)
        for read in (read_prompt(texts, made), read_prompt(texts, dict(made)), read_prompt(texts, **made)):
            check(read, wanted["input_ids"], wanted["attention_mask"])

    def test_a_tokenizers_output_may_be_padded_here(self, texts: Reader) -> None:
        wanted = tokenizer()(TEXTS, padding=True, padding_side="left", return_tensors="pt")
        ragged, several = tokenizer()(TEXTS), [tokenizer()(text) for text in TEXTS]
        pad = replace(texts, pad_id=tokenizer().pad_token_id)
        for made in (ragged, dict(ragged), several):
            check(read_prompt(pad, made), wanted["input_ids"], wanted["attention_mask"])

    def test_messages_go_through_the_chat_template(self, chats: Reader) -> None:
        own = chats.tokenizer()
        wanted = own.apply_chat_template([CHAT], add_generation_prompt=True, return_tensors="pt", return_dict=True)
        check(read_prompt(chats, CHAT), wanted["input_ids"])
        check(read_prompt(chats, [CHAT]), wanted["input_ids"])
        assert own.decode(read_prompt(chats, CHAT).tokens[0]).endswith("The capital of France is\nassistant:")

    def test_conversations_are_padded_on_the_left(self, chats: Reader) -> None:
        options = {"padding": True, "tokenizer_kwargs": {"padding_side": "left"}, "return_tensors": "pt"}
        wanted = chats.tokenizer().apply_chat_template(
            [CHAT, OTHER_CHAT], add_generation_prompt=True, return_dict=True, **options
        )
        assert not wanted["attention_mask"].all()
        check(read_prompt(chats, [CHAT, OTHER_CHAT]), wanted["input_ids"], wanted["attention_mask"])


ONE = [3, 1, 4, 1, 5]
BATCH = [[3, 1, 4], [1, 5, 9]]


class TestIds:
    @pytest.mark.parametrize(
        "ask",
        [
            ONE,
            tuple(ONE),
            torch.tensor(ONE),
            torch.tensor([ONE]),
            np.array(ONE),
            [np.int64(i) for i in ONE],
            [torch.tensor(i) for i in ONE],
            {"input_ids": ONE},
        ],
        ids=lambda ask: type(ask).__name__,
    )
    def test_one_prompt_is_a_row(self, ask: Any) -> None:
        check(read_prompt(NUMBERS, ask), [ONE])

    @pytest.mark.parametrize(
        "ask",
        [BATCH, torch.tensor(BATCH), np.array(BATCH), [torch.tensor(row) for row in BATCH], [tuple(r) for r in BATCH]],
        ids=["lists", "tensor", "array", "tensors", "tuples"],
    )
    def test_several_prompts_are_rows(self, ask: Any) -> None:
        check(read_prompt(NUMBERS, ask), BATCH)
        check(read_prompt(NUMBERS, input_ids=ask), BATCH)

    @pytest.mark.parametrize("of", [list, np.array, torch.tensor, range], ids=["list", "array", "tensor", "range"])
    def test_different_lengths_are_padded_on_the_left(self, of: Callable) -> None:
        rows = [range(3), range(1)] if of is range else [of([0, 1, 2]), of([0])]
        check(read_prompt(NUMBERS, rows), [[0, 1, 2], [7, 7, 0]], [[1, 1, 1], [0, 0, 1]])

    @pytest.mark.parametrize("dtype", "uint8 int8 uint16 int16 uint32 int32 uint64 int64".split())
    def test_integers_of_any_width(self, dtype: str) -> None:
        check(read_prompt(NUMBERS, np.array(BATCH, dtype=dtype)), BATCH)
        check(read_prompt(NUMBERS, torch.tensor(BATCH, dtype=getattr(torch, dtype))), BATCH)
        check(read_prompt(NUMBERS, list(np.array(BATCH, dtype=dtype))), BATCH)

    def test_what_is_written_later_is_not_in_the_prompt(self) -> None:
        tokens, mask = torch.tensor(BATCH), torch.tensor([[True] * 3, [False, True, True]])
        fast, slow = read_prompt(NUMBERS, tokens), read_prompt(NUMBERS, tokens, labels=tokens)
        masked = read_prompt(NUMBERS, tokens, attention_mask=mask)
        tokens += 1
        mask[:] = True
        check(fast, BATCH)
        check(slow, BATCH)
        check(masked, BATCH, [[1, 1, 1], [0, 1, 1]])
        assert slow.labels.tolist() == BATCH

    @pytest.mark.parametrize("of", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
    @pytest.mark.parametrize("kind", [int, bool, float], ids=["int", "bool", "float"])
    def test_a_mask_is_of_any_numbers(self, kind: type, of: Callable) -> None:
        for mask in ([0, 1, 1], [1, 1, 0], [1, 0, 1]):
            given_mask = of([kind(one) for one in mask])
            check(read_prompt(NUMBERS, [3, 1, 4], attention_mask=given_mask), [[3, 1, 4]], [mask])
            check(read_prompt(NUMBERS, {"input_ids": [3, 1, 4]}, attention_mask=given_mask), [[3, 1, 4]], [mask])

    def test_rows_of_different_lengths_may_bring_their_masks(self) -> None:
        read = read_prompt(NUMBERS, [[3, 1, 4], [1, 5]], attention_mask=[[1, 1, 1], [0, 1]])
        check(read, [[3, 1, 4], [7, 1, 5]], [[1, 1, 1], [0, 0, 1]])

    def test_positions_that_the_mask_implies_are_taken(self) -> None:
        tokens, mask = torch.tensor(BATCH), [[0, 1, 1], [1, 1, 0]]
        check(read_prompt(NUMBERS, tokens, position_ids=[0, 1, 2]), BATCH)
        check(read_prompt(NUMBERS, tokens, position_ids=[[0, 1, 2]]), BATCH)
        positions = torch.tensor(mask).cumsum(-1) - 1
        positions[torch.tensor(mask) == 0] = 1  # what transformers puts at padding
        check(read_prompt(NUMBERS, tokens, attention_mask=mask, position_ids=positions), BATCH, mask)

    def test_keywords_that_change_nothing_are_taken(self) -> None:
        harmless = {"use_cache": True, "return_dict": True, "output_attentions": False, "output_hidden_states": False}
        nothing = dict.fromkeys(["labels", "past_key_values", "inputs_embeds", "attention_mask", "head_mask"])
        check(read_prompt(NUMBERS, BATCH, **harmless, **nothing, logits_to_keep=0, token_type_ids=[[0] * 3] * 2), BATCH)

    def test_padding_counts_as_no_token(self) -> None:
        mask = [0] * 5 + [1] * 12
        check(read_prompt(NUMBERS, [1] * 17, attention_mask=mask), [[1] * 17], [mask])
        with pytest.raises(ContextLengthError, match="13 tokens, but the model has 12 positions"):
            read_prompt(NUMBERS, [1] * 17, attention_mask=[0] * 4 + [1] * 13)


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=PLAIN, ids=lambda pair: pair[0])
def pair(request: pytest.FixtureRequest) -> tuple[LanguageModel, Any]:
    """One folder, read by both."""
    return LanguageModel(folder(*request.param)), theirs(*request.param)


def random_embeds(model: LanguageModel, *shape: int) -> Tensor:
    return torch.rand(*shape, model.config.d_model, dtype=torch.float64) * 2 - 1


def test_right_padding_has_the_logits_of_transformers(pair: tuple) -> None:
    ours, other = pair
    asked = {"input_ids": ROWS, "attention_mask": MASK}
    with torch.no_grad():
        a, b = ours(asked), other(**asked).logits
    assert error(a[MASK.bool()], b[MASK.bool()]) < 1e-10


def test_left_padding_has_the_logits_of_transformers_with_the_positions_that_it_implies(pair: tuple) -> None:
    ours, other = pair
    mask = MASK.flip(1)
    asked = {"input_ids": ROWS, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    with torch.no_grad():
        a, b = ours(**asked), other(**asked).logits
    assert error(a[mask.bool()], b[mask.bool()]) < 1e-10


def test_a_mask_may_have_holes_and_they_take_no_position(pair: tuple) -> None:
    ours, other = pair
    tokens, mask = prompt(1, 12), torch.tensor([[0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 0, 1]])
    a = ours(tokens, attention_mask=mask)[mask.bool()]
    with torch.no_grad():
        b = other(tokens[mask.bool()][None]).logits[0]
    assert error(a, b) < 1e-10


def test_embeds_have_the_logits_and_gradients_of_transformers(pair: tuple) -> None:
    ours = pair[0]
    embeds = random_embeds(ours, 3, 5)
    found = []
    for model in pair:
        leaf = embeds.clone().requires_grad_()
        out = model(inputs_embeds=leaf, attention_mask=MASK)
        logits = (out if model is ours else out.logits)[MASK.bool()]
        (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
        found.append((logits.detach(), leaf.grad))
    assert error(found[0][0], found[1][0]) < 1e-10
    assert error(found[0][1], found[1][1]) < 1e-10
    assert not ours.prepare(inputs_embeds=embeds).tokens.any()
    assert torch.equal(ours(inputs_embeds=embeds[0]), ours(inputs_embeds=embeds[:1]))


def test_labels_have_the_loss_of_transformers(pair: tuple) -> None:
    ours, other = pair
    ignoring = torch.where(torch.rand(3, 5) < 0.3, IGNORED, prompt(3, 5))
    right_padded = ROWS.masked_fill(MASK == 0, IGNORED)
    for labels, mask in ((ROWS, None), (ignoring, None), (right_padded, MASK)):
        asked = {"input_ids": ROWS, "attention_mask": mask, "labels": labels}
        with torch.no_grad():
            a, b = ours(asked), other(**asked)
            exact = F.cross_entropy(b.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        assert error(a.loss, exact) < 1e-10
        assert error(a.loss, b.loss) < 1e-6  # transformers rounds to float32
        assert torch.equal(a, ours(ROWS, attention_mask=mask))


def test_embeds_and_labels_together_have_the_loss_of_transformers(pair: tuple) -> None:
    ours, other = pair
    asked = {"inputs_embeds": random_embeds(ours, 3, 5), "labels": ROWS}
    assert error(ours(**asked).loss, other(**asked).loss) < 1e-6


def test_the_loss_of_a_padded_prompt_is_that_of_the_prompt_alone(pair: tuple) -> None:
    ours, _ = pair
    rows = [prompt(7).tolist(), prompt(3).tolist()]
    alone = [ours(row, labels=row).loss for row in rows]
    wanted = (6 * alone[0] + 2 * alone[1]) / 8
    left = torch.tensor([rows[0], [0] * 4 + rows[1]])
    mask = torch.tensor([[1] * 7, [0] * 4 + [1] * 3])
    padded = {"input_ids": left, "attention_mask": mask, "labels": left.masked_fill(mask == 0, IGNORED)}
    for asked in ({"input_ids": rows, "labels": rows}, padded):
        assert error(ours(**asked).loss, wanted) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@ids(PLAIN)
def test_losses_of_other_dtypes_are_those_of_transformers(family: str, setting: str, dtype: torch.dtype) -> None:
    with torch.no_grad():
        b = theirs(family, setting, dtype)(ROWS, labels=ROWS)
    a = loss_of(b.logits, ROWS)
    assert a.dtype == b.loss.dtype == torch.float32
    assert error(a, b.loss) < 1e-6


def test_labels_may_be_text_and_padding_is_ignored(texts: Reader) -> None:
    wanted = tokenizer()(TEXTS, padding=True, padding_side="left", return_tensors="pt")
    labels = wanted["input_ids"].masked_fill(wanted["attention_mask"] == 0, IGNORED)
    labels[:, 1:].masked_fill_(wanted["attention_mask"][:, :-1] == 0, IGNORED)  # what no token predicts
    assert torch.equal(read_prompt(texts, TEXTS, labels=TEXTS).labels, labels)
    assert read_prompt(texts, TEXTS[0], labels=TEXTS[0]).labels.tolist() == tokenizer()(TEXTS[:1])["input_ids"]


def test_ways_of_running_that_contradict_the_prompt_are_refused() -> None:
    model = LanguageModel(folder("gpt2", "default"))
    with pytest.raises(ValueError, match="labels="):
        model(inputs_embeds=random_embeds(model, 1, 4), return_type="loss")
    with pytest.raises(ValueError, match="stop_at_layer"):
        model(ROWS, labels=ROWS, stop_at_layer=1)


def test_a_trace_takes_labels_and_embeds_as_a_call_does() -> None:
    model = LanguageModel(folder("gpt2", "default"))
    embeds = random_embeds(model, 2, 4)
    with model.trace({"input_ids": ROWS, "labels": ROWS}):
        loss = model.output.loss
    with model.trace(inputs_embeds=embeds):
        logits = model.output
    assert torch.equal(loss, model(ROWS, labels=ROWS).loss)
    assert torch.equal(logits, model(inputs_embeds=embeds))


@pytest.mark.parametrize(
    ("family", "setting", "most"),
    [
        ("gpt2", "default", N_CTX),
        ("llama", "default", N_CTX),
        ("llama", "rope=linear", 3 * N_CTX),
        ("llama", "rope=dynamic", 160),
        ("mistral", "window=7", N_CTX),
    ],
)
def test_a_prompt_too_long_is_refused_before_anything_runs(family: str, setting: str, most: int) -> None:
    model = LanguageModel(folder(family, setting))
    assert model.prepare([1] * most).tokens.shape == (1, most)
    for too_long in ([1] * (most + 1), torch.ones(1, most + 1, dtype=torch.long)):
        with pytest.raises(ContextLengthError, match=f"{most + 1} tokens, but the model has {most} positions"):
            model.trace(too_long)
    assert model._native is None


@given(rows=st.lists(st.lists(st.integers(0, D_VOCAB - 1), min_size=1, max_size=12), min_size=1, max_size=5))
def test_rows_come_back_without_their_padding(rows: list[list[int]]) -> None:
    read = read_prompt(NUMBERS, rows)
    mask = torch.ones_like(read.tokens, dtype=torch.bool) if read.attention_mask is None else read.attention_mask
    assert [row[kept].tolist() for row, kept in zip(read.tokens, mask, strict=True)] == rows
    assert (read.tokens[~mask] == NUMBERS.pad_id).all()
