"""What holds for the whole suite: offline, seeded, and with every annotated shape checked."""

import os
import random
from collections.abc import Iterator
from typing import Any

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--remote", action="store_true", help="run traces through the wire of remote execution")


@pytest.fixture
def through_the_wire() -> Iterator[Any]:
    """The server, in this process, to which all traces of the test go."""
    from through_the_wire import everything_remote

    with everything_remote() as server:
        yield server


@pytest.fixture(autouse=True)
def maybe_remote(request: pytest.FixtureRequest) -> None:
    """With `--remote`, every test is one through the wire."""
    if request.config.getoption("--remote"):
        request.getfixturevalue("through_the_wire")
