"""What holds for the whole suite: offline, seeded, and with every annotated shape checked."""

import os
import random
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once, when huggingface_hub is imported

import numpy as np
import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

pytest_plugins = ["remote_server"]

install_import_hook("nnzoo", "beartype.beartype")  # before anything imports nnzoo

settings.register_profile("nnzoo", deadline=None, derandomize=True)
settings.load_profile("nnzoo")
torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other, and for whoever has the cores


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """The same random numbers in every test, whichever ran before; and none leaves autograd switched off."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    left_on = torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    assert left_on, "this test left autograd switched off for those after it"
