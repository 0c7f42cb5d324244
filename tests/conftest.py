"""What holds for the whole suite: offline, seeded, and with every annotated shape checked, but for what says it is not.

Comparisons of whole generations are `unchecked`; what they call is checked in the tests of a single pass.
"""

import gc
import os
import random
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once, when huggingface_hub is imported

import numpy as np
import pytest
import torch
from hypothesis import settings
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook

from layout import modules

pytest_plugins = ["remote_server"]

# Before anything imports nnzoo; and only modules that have shapes, since a checked call takes ten times as long.
install_import_hook([name for name, file in modules() if "jaxtyping" in file.read_text()], "beartype.beartype")

settings.register_profile("nnzoo", deadline=None, derandomize=True)
settings.load_profile("nnzoo")
gc.disable()  # until all tests are collected: nothing is let go of that is imported until then
torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other, and for whoever has the cores


def pytest_collection_finish() -> None:
    """From here on no search for garbage goes through half a million objects that were imported."""
    gc.freeze()
    gc.enable()


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


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations that nothing checks, as in production: for what a function itself says to a wrong argument."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


# --- through the wire of remote execution ----------------------------------------------------------------------------

# Tests of tracing that are run twice, the second time through the wire; `make test-remote` has every one there.
ALSO_REMOTE = set(
    """
    test_analysis_changing test_contexts test_contexts_cache test_contexts_edit test_contexts_edit_modules
    test_contexts_saving test_generation_options test_tracing test_tracing_cost test_tracing_custom test_tracing_edits
    test_tracing_errors test_tracing_functions test_tracing_generation test_tracing_gradients test_tracing_numbers
    test_tracing_shortcuts test_tracing_step_lists test_tracing_stop test_tracing_training test_tracing_turns
    """.split()
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--remote", action="store_true", help="run traces through the wire of remote execution")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "local(why): by its nature it fails through the wire, where it has to fail")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    again = metafunc.module.__name__ in ALSO_REMOTE and not list(metafunc.definition.iter_markers("local"))
    if again and not metafunc.config.getoption("--remote"):
        both = [pytest.param(False, id=pytest.HIDDEN_PARAM), pytest.param(True, id="remote")]
        metafunc.parametrize("maybe_remote", both, indirect=True)


@pytest.fixture
def through_the_wire() -> Iterator[Any]:
    """The server, in this process, to which all traces of the test go."""
    from through_the_wire import everything_remote

    with everything_remote() as server:
        yield server


@pytest.fixture(autouse=True)
def maybe_remote(request: pytest.FixtureRequest) -> None:
    """With `--remote`, or as the second of two runs, a test is one through the wire."""
    if not request.config.getoption("--remote") and not getattr(request, "param", False):
        return
    request.getfixturevalue("through_the_wire")
    for mark in request.node.iter_markers("local"):
        (why,) = mark.args
        request.applymarker(pytest.mark.xfail(reason=why, strict=True))
