"""A cache can be pickled, copied and saved after its trace: values and names, without the model."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import speaking
from nnzoo import LanguageModel
from nnzoo.tracing.caching import CacheView
from nnzoo.tracing.recorder import TraceError

PROMPT = "The cat sat on the quick brown dog"


def saved_by_torch(cache: CacheView) -> CacheView:
    file = BytesIO()
    torch.save(cache, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda cache: pickle.loads(pickle.dumps(cache)),
    "deepcopy": copy.deepcopy,
    "torch": saved_by_torch,
}


@pytest.fixture(params=[*WAYS])
def stored(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return WAYS[request.param]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(speaking.folder("gpt2", 3), rename={"transformer.h": "layers"})


def test_it_answers_as_before(model: LanguageModel, stored: Callable) -> None:
    with model.trace(PROMPT) as tracer:
        cache = tracer.cache(include_inputs=True)
    other = stored(cache)
    assert other.keys() == cache.keys() and len(other) == len(cache) and "model.transformer.h.1.mlp" in other
    for a, b in zip(cache.values(), other.values(), strict=True):
        ours, theirs = (tree_leaves((v.output, v.inputs)) for v in (a, b))
        assert len(ours) == len(theirs)
        for one, two in zip(ours, theirs, strict=True):
            assert one is two is None or torch.equal(one, two)
    for part in (other.model.transformer.h[1], other.layers[-2], other["model.layers.1"]):
        assert torch.equal(part.output[0], cache["model.transformer.h.1"].output[0])
    assert torch.equal(other.blocks[1].mlp.output, cache.transformer.h[1].mlp.output)
    assert torch.equal(other["model"].output.logits, cache["model"].output)
    assert torch.equal(other.transformer.output.last_hidden_state, cache.transformer.output.last_hidden_state)
    with pytest.raises(AttributeError, match="did you mean mlp"):
        _ = other.transformer.h[1].mpl


def test_a_part_of_it_too(model: LanguageModel, stored: Callable) -> None:
    with model.generate(PROMPT, max_new_tokens=3) as tracer:
        cache = tracer.cache(model.transformer.h[1].mlp)
    other = stored(cache.transformer.h[1].mlp)
    assert len(other) == 3
    assert all(map(torch.equal, other.output, cache.transformer.h[1].mlp.output))
    with pytest.raises(KeyError, match="was not cached"):
        _ = stored(cache).lm_head.output


def test_modules_of_ones_own_are_names_in_it(stored: Callable) -> None:
    class Probe(nn.Module):  # of a class that pickle cannot find
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.Sequential(nn.Linear(48, 5, dtype=torch.float64), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.parts(x)

    model = LanguageModel(speaking.folder("gpt2", 3))
    model.transformer.h[1].probe = Probe()
    with model.trace(PROMPT) as tracer:
        model.transformer.h[1].probe(model.transformer.h[1].output[0], hook=True)
        cache = tracer.cache()
    other = stored(cache)
    assert torch.equal(other.transformer.h[1].probe.output, cache.transformer.h[1].probe.output)
    assert torch.equal(other.transformer.h[1].probe.parts[0].output, cache.transformer.h[1].probe.parts[0].output)


def test_what_is_stored_holds_no_model(model: LanguageModel) -> None:
    with model.trace("Hello") as tracer:
        cache = tracer.cache([model.transformer.h[0].mlp])
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert len(pickle.dumps(cache)) < weights / 4


def test_it_is_read_in_another_process(model: LanguageModel, tmp_path: Path) -> None:
    with model.trace(PROMPT) as tracer:
        cache = tracer.cache()
    torch.save(cache, tmp_path / "cache.pt")
    program = f"""
import torch
cache = torch.load({str(tmp_path / "cache.pt")!r}, weights_only=False)
print(cache.model.transformer.h[1].output[0].sum().item())
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert float(out) == cache.model.transformer.h[1].output[0].sum().item()


def test_inside_the_body_there_is_nothing_to_store(model: LanguageModel) -> None:
    with model.trace(PROMPT) as tracer:
        cache = tracer.cache()
        with pytest.raises(TraceError, match="when the block of its trace has ended"):
            pickle.dumps(cache)
