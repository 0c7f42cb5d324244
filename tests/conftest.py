"""What holds for the whole suite: offline, seeded, and with every annotated shape checked."""

import os
import random

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once, when huggingface_hub is imported

import numpy as np
import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("nnzoo", "beartype.beartype")  # before anything imports nnzoo

settings.register_profile("nnzoo", deadline=None, derandomize=True)
settings.load_profile("nnzoo")
torch.set_num_threads(min(2, torch.get_num_threads()))  # the models are tiny: more threads only wait for each other


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every test, whichever ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
