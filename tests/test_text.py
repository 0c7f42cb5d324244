"""Between text and ids, with whatever encodes and decodes as a tokenizer."""

import pytest
import torch

from small_models import FAMILIES, difference, small


@pytest.fixture(params=FAMILIES)
def model(request):
    return small(request.param)


class Words:
    """A tokenizer: one id for each word, 0 for the beginning, 1 for the end and for padding."""

    words = "<s> </s> the cat sat on mat a dog".split()
    bos_token_id, eos_token_id, pad_token_id = 0, 1, None

    def encode(self, text, add_special_tokens=True):
        return [self.words.index(word) for word in text.split()]

    def decode(self, ids):
        return " ".join(self.words[i] for i in ids)


@pytest.fixture
def reader(model):
    model.tokenizer = Words()
    return model


def test_text_becomes_ids_and_text_again(reader):
    assert reader.to_tokens("the cat").tolist() == [[2, 3]]
    assert reader.to_tokens("the cat", prepend_bos=True).tolist() == [[0, 2, 3]]
    assert reader.to_tokens("<s> cat", prepend_bos=True).tolist() == [[0, 3]]
    assert reader.to_tokens(["the cat sat", "a"]).tolist() == [[2, 3, 4], [1, 1, 7]]
    assert reader.to_string(torch.tensor([2, 3])) == reader.to_string([2, 3]) == "the cat"
    assert reader.to_string(torch.tensor([[2, 3], [4, 5]])) == ["the cat", "sat on"]
    assert reader.to_string(3) == "cat"
    assert reader.to_str_tokens("the cat") == reader.to_str_tokens(torch.tensor([[2, 3]])) == ["the", "cat"]
    assert reader.to_str_tokens(torch.tensor([[2, 3], [4, 5]])) == [["the", "cat"], ["sat", "on"]]
    assert reader.to_str_tokens(["the cat", "a"], prepend_bos=True) == [["<s>", "the", "cat"], ["<s>", "a"]]
    assert reader.to_single_token("mat") == 6
    assert reader.to_single_str_token(6) == "mat"


def test_more_than_one_token_is_not_a_single_one(reader):
    with pytest.raises(ValueError, match=r"'the cat' is 2 tokens, not one: \['the', 'cat'\]"):
        reader.to_single_token("the cat")


def test_a_model_without_a_tokenizer_says_so(model):
    with pytest.raises(ValueError, match="this model has no tokenizer"):
        model("the cat")


def test_a_tokenizer_may_be_loaded_when_it_is_first_used(model):
    loads = []
    model.tokenizer = lambda: loads.append(1) or Words()
    assert not loads
    assert model.to_tokens("the cat").tolist() == model.to_tokens("the cat").tolist() == [[2, 3]]
    assert loads == [1]


def test_texts_run_as_their_ids_do_whatever_their_neighbours(reader):
    alone = reader("a dog")
    assert torch.equal(alone, reader(torch.tensor([[7, 8]])))
    together = reader(["the cat sat on the mat", "a dog"])
    assert difference(together[1:, -2:], alone) < 1e-6
    assert difference(reader(["a dog sat", "a dog"], return_type="loss", loss_per_token=True)[1, -1],
                      reader("a dog", return_type="loss")) < 1e-6  # fmt: skip


def test_a_token_to_attribute_may_be_text(reader):
    _, cache = reader.run_with_cache("the cat sat")
    parts = cache.decompose_resid(pos_slice=-1)
    said, counted = (cache.logit_attrs(parts, *pair, pos_slice=-1) for pair in (("cat", "dog"), (3, 8)))
    assert torch.equal(said, counted)
