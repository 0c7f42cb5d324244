"""A device that this machine has not: whoever asks for it is told what there is, and the model stays where it was."""

import pytest
import torch

from nnzoo import LanguageModel
from nnzoo.transformer_lens import HookedTransformer
from nnzoo.weights import load

MODEL = "nnzoo/tiny-gpt2"
SIZES = {"d_model": 8, "d_head": 4, "n_layers": 1, "n_ctx": 6, "d_vocab": 11}
ASKING = {
    "load": lambda device: load(MODEL, device=device),
    "LanguageModel": lambda device: LanguageModel(MODEL, device=device).dispatch(),
    "from_pretrained": lambda device: HookedTransformer.from_pretrained(MODEL, device=device),
    "a config": lambda device: HookedTransformer({**SIZES, "device": device}),
}


@pytest.mark.parametrize("asking", ASKING)
@pytest.mark.parametrize("device", ["cuda:99", "toaster"])
def test_a_device_that_is_not_there_is_refused(asking, device):
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used: this machine has cpu"):
        ASKING[asking](device)


@pytest.mark.parametrize("kind", [LanguageModel, HookedTransformer.from_pretrained])
def test_a_model_that_cannot_be_moved_stays(kind):
    model = kind(MODEL, device="cpu")
    with pytest.raises(ValueError, match="device 'cuda:99' cannot be used"):
        model.to("cuda:99")
    assert torch.device(getattr(model, "cfg", model).device) == torch.device("cpu")
    assert torch.as_tensor(model.to("cpu")("The capital")).device == torch.device("cpu")


def test_a_device_may_be_elsewhere_as_long_as_no_weight_is_read():
    assert LanguageModel(MODEL, device="cuda:99").device == torch.device("cuda:99")
