"""A trace gives the same values with and without remote=True, on a client that has no weights."""

import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import speaking
from families import error
from nnzoo import LanguageModel
from nnzoo.remote.protocol import unpack
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.recorder import TraceError
from remote_programs import PROGRAMS, PROMPT, differentiating, generating, reading_and_writing
from remote_stand_in import StandIn

FAMILIES = ["gpt2", "llama", "mistral"]
Body = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def weightless(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with config and tokenizer, and no weights."""
    folders = {}
    for family in FAMILIES:
        folders[family] = tmp_path_factory.mktemp("client") / family
        shutil.copytree(speaking.folder(family, 4), folders[family], ignore=shutil.ignore_patterns("*.safetensors"))
        assert not [*folders[family].glob("*.safetensors")]
    return folders


class Pair:
    """The model here, and there: the same, of which the client knows the config."""

    def __init__(self, family: str, folder: Path) -> None:
        self.here = LanguageModel(speaking.folder(family, 4), rename=NAMES)
        self.there = LanguageModel(folder, rename=NAMES)
        self.server = StandIn(**{str(folder): LanguageModel(speaking.folder(family, 4))})

    def both(self, body: Body) -> tuple[dict[str, Any], dict[str, Any]]:
        """The values of a program, remote and not, each with the random numbers of the same seed."""
        torch.manual_seed(3)
        theirs = body(self.here)
        torch.manual_seed(3)
        ours = body(self.there, remote=True)
        assert self.there._native is None, "no weight was read"
        return ours, theirs


NAMES = {"transformer.h": "blocks", "model.layers": "blocks", "transformer.ln_f": "final", "model.norm": "final"}


@pytest.fixture(params=["gpt2"])
def pair(request: pytest.FixtureRequest, weightless: dict[str, Path]) -> Iterator[Pair]:
    pair = Pair(request.param, weightless[request.param])
    with pair.server.configured():
        yield pair


every_family = pytest.mark.parametrize("pair", FAMILIES, indirect=True)


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        ours, theirs = [*ours.values()], [*theirs.values()]
    if isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(theirs, Tensor):
        assert type(ours) is Tensor and ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert error(ours.detach(), theirs.detach()) < 1e-12
    else:
        assert ours == theirs


# --- programs that give the same -------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_the_same_program_gives_the_same_values(pair, program):
    assert_same(*pair.both(program))


@every_family
@pytest.mark.parametrize("program", [reading_and_writing, generating, differentiating], ids=lambda p: p.__name__)
def test_it_does_in_every_family(pair, program):
    assert_same(*pair.both(program))


# --- what crosses the wire -------------------------------------------------------------------------------------------


def sent(pair: Pair) -> list[Any]:
    return [job["message"] for job in pair.server.jobs.values()]


def test_only_what_is_saved_comes_back_and_the_rest_says_so(pair):
    model = pair.there
    with model.trace(PROMPT, remote=True):
        hidden = model.blocks[1].output[0]
        norm = hidden.norm().save()
    assert type(norm) is Tensor and isinstance(hidden, LazyTensor)
    with pytest.raises(
        TraceError, match=r"blocks\.1\.hook_resid_post, .*test_remote_trace\.py:\d+.* was not saved: value\.save"
    ):
        hidden + 1
    with pytest.raises(TraceError, match="only saved values come back"):
        print(hidden)
    (job,) = pair.server.jobs.values()
    assert [t.numel() for t in unpack(job["result"], kinds=["result"]).tensors.values()] == [1]


def test_what_nobody_needs_is_not_sent(pair):
    model = pair.there
    with model.trace(PROMPT, remote=True):
        unused = model.blocks[1].output[0] * torch.ones(48, dtype=torch.float64)
        norm = model.blocks[0].output[0].norm().save()
    (message,) = sent(pair)
    assert len(message.tensors) == 1, "the prompt's ids alone"
    assert norm.ndim == 0 and isinstance(unused, LazyTensor)


def test_a_trace_that_saves_nothing_sends_nothing(pair):
    with pair.there.trace(PROMPT, remote=True):
        _ = pair.there.output
    assert not pair.server.asked


def test_weights_are_sent_by_name(pair):
    assert_same(*pair.both(lambda model, **how: {"v": _by_weights(model, how)}))
    assert max(t.numel() for message in sent(pair) for t in message.tensors.values()) < 100


def _by_weights(model: Any, how: dict[str, Any]) -> Tensor:
    with model.trace(PROMPT, **how):
        stream = model.blocks[1].output[0]
        direction = model.lm_head.weight[3] - model.lm_head.weight[4]
        value = (stream @ direction + model.lm_head(torch.ones(1, 48, dtype=torch.float64)).sum()).save()
    return value


@pytest.mark.parametrize("looks", [1, 3])
def test_a_look_is_one_round_trip_and_looking_again_is_none(pair, looks):
    model = pair.there
    with model.trace(PROMPT, remote=True):
        norm = model.blocks[0].output[0].norm()
        seen = [norm.item() for _ in range(looks)]
    assert len(pair.server.jobs) == 1 and len(set(seen)) == 1


def test_a_look_sees_what_was_changed_since(pair):
    model = pair.there
    with model.trace(PROMPT, remote=True):
        norm = model.blocks[1].output[0].norm()
        before = norm.item()
        model.blocks[0].output[0][:] = 0
        after = norm.item()
        value = norm.save()
    assert before != after and value.item() == after


def test_steps_that_only_read_are_asked_for_once(pair):
    model = pair.there
    with model.generate(PROMPT, max_new_tokens=9, eos_token_id=1, remote=True) as tracer:
        count = sum(1 for _ in tracer.iter[:])
    assert 1 <= count <= 9 and len(pair.server.jobs) == 1


def test_values_that_every_step_saves_come_in_a_list_that_is_not_saved(pair):
    model = pair.there
    saved, others = [], []
    with model.generate(PROMPT, max_new_tokens=3, remote=True) as tracer:
        with tracer.all():
            saved.append(model.lm_head.output.save())
            others.append(model.lm_head.output * 2)
    assert [one.shape[:2] for one in saved] == [(1, 1)] * 3 and not torch.equal(saved[1], saved[2])
    for other in others:
        with pytest.raises(TraceError, match="save"):
            _ = other + 0


def test_the_server_learns_the_name_that_was_given(pair):
    _ = pair.there.generate(PROMPT, max_new_tokens=1, remote=True) + 0
    assert sent(pair)[0].fields["model"] == pair.there._checkpoint.name


# --- a job -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["result", "backend", "unheld"])
def test_a_trace_that_does_not_wait_is_filled_in_later(pair, how):
    model = pair.there
    pair.server.is_stopped = True
    with model.trace(PROMPT, remote=True, blocking=False) as tracer:
        hidden, unsaved = model.blocks[1].output[0].save(), model.blocks[2].output[0]
    with pytest.raises(TraceError, match=rf"is not here yet: .* job {tracer.job.id}, whose result\(\) waits"):
        hidden + 1
    assert tracer.backend.job_id == tracer.job.id and tracer.backend() is None
    if how == "unheld":
        del hidden
    pair.server.run(pair.server.jobs[tracer.job.id])
    (value,) = tracer.backend() if how == "backend" else tracer.job.result()
    with pair.here.trace(PROMPT):
        expected = pair.here.blocks[1].output[0]
    assert_same(value, expected)
    if how != "unheld":
        assert_same(hidden, expected)
    with pytest.raises(TraceError, match="was not saved"):
        unsaved + 1


def test_the_cache_of_a_trace_that_does_not_wait_says_so_until_it_is_filled(pair):
    pair.server.is_stopped = True
    with pair.there.trace(PROMPT, remote=True, blocking=False) as tracer:
        cache = tracer.cache()
    block = cache["model.transformer.h.1"]
    for read in (lambda: block.output, lambda: len(block), lambda: pickle.dumps(cache)):
        with pytest.raises(TraceError, match=rf"the cache is not here yet: .* job {tracer.job.id}, whose result"):
            read()
    pair.server.run(pair.server.jobs[tracer.job.id])
    tracer.job.result()
    assert type(block.output[0]) is Tensor


def test_a_job_is_not_there_before_the_end(pair):
    with pair.there.trace(PROMPT, remote=True) as tracer:
        with pytest.raises(TraceError, match="it is sent when the block ends"):
            _ = tracer.job


# --- errors ----------------------------------------------------------------------------------------------------------


def test_an_error_there_is_raised_here_with_the_line_that_recorded_it(pair):
    model = pair.there
    with pytest.raises(torch.linalg.LinAlgError, match=r"linalg_inv of .* singular") as raised:
        with model.trace(PROMPT, remote=True):
            hidden = model.blocks[0].output[0]
            value = torch.linalg.inv(hidden[0, :2, :2] * 0).save()  # this one
    last = raised.traceback[-1]
    assert last.path == Path(__file__) and str(last.statement).endswith("# this one")
    with pytest.raises(TraceError, match="never computed"):
        value + 1


def test_a_look_raises_at_its_line(pair):
    model = pair.there
    with pytest.raises(torch.linalg.LinAlgError) as caught:
        with model.trace(PROMPT, remote=True):
            torch.linalg.inv(model.blocks[0].output[0][0, :2, :2] * 0).sum().item()  # this one
    ours = [entry for entry in caught.traceback if entry.path == Path(__file__)]
    assert str(ours[-1].statement).endswith("# this one")


def test_a_wrong_shape_is_seen_before_anything_is_sent(pair):
    with pytest.raises(RuntimeError, match="same reduction dim"):
        with pair.there.trace(PROMPT, remote=True):
            pair.there.blocks[0].output[0] @ torch.ones(47, 3, dtype=torch.float64)
    assert not pair.server.asked


def test_a_function_that_is_not_pytorchs_is_refused_before_anything_is_sent(pair):
    model = pair.there
    double = lambda x: x * 2  # noqa: E731
    with pytest.raises(
        TraceError, match=r"recorded at .*test_remote_trace\.py:\d+.*<lambda> is not among the functions"
    ):
        with model.trace(PROMPT, remote=True):
            hidden = model.blocks[0].output[0]
            value = hidden._recorder.record(double, (hidden,), {}).save()
    assert not pair.server.asked
    with model.trace(PROMPT, remote=True):  # called, it is PyTorch's functions that are recorded
        value = double(model.blocks[0].output[0]).save()
    assert type(value) is Tensor


def test_a_graph_of_autograd_stays_there(pair):
    with pytest.raises(ValueError, match="no graph crosses a wire"):
        pair.there.trace(PROMPT, remote=True, grad=True)


def test_a_tensor_that_was_changed_since_is_refused(pair):
    model, own = pair.there, torch.ones(48, dtype=torch.float64)
    with pytest.raises(TraceError, match="a tensor that it uses was changed since"):
        with model.trace(PROMPT, remote=True):
            value = (model.blocks[0].output[0] + own).save()
            own.zero_()
    assert not pair.server.asked and value is not None
