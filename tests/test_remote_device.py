"""A device that is lost, as a GPU is after an assertion in one of its kernels: nobody is given what it cannot know."""

import pytest
import torch

from nnzoo import LanguageModel
from nnzoo.remote import running
from nnzoo.remote.limits import Limits
from nnzoo.remote.protocol import unpack
from wire import packed


@pytest.mark.parametrize("together", [1, 2], ids=["alone", "with another"])
def test_after_a_kernel_has_failed_only_who_was_alone_is_told_so(together, monkeypatch):
    model, requests = LanguageModel("nnzoo/tiny-gpt2"), []
    for _ in range(together):
        with model.trace("The keys") as tracer:
            model.output.save()
            requests.append(packed(tracer.graph))

    def check(device: torch.device) -> None:
        raise running.DeviceLost("CUDA error: device-side assert triggered")

    monkeypatch.setattr(running, "check_usable", check)
    given = []
    with pytest.raises(running.DeviceLost):
        for _, answer in running.answers(model, requests, Limits(), lambda number, progress: None):
            given.append(unpack(answer, kinds=["error"]).fields["message"])
    assert given == (["CUDA error: device-side assert triggered"] if together == 1 else [])
