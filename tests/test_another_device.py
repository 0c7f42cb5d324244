"""What runs on a device stays there: the meta device for a second one, where a tensor of the CPU fits nowhere."""

import pytest
import torch

from nnzoo.architectures.fixed_cache import FixedCache
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.generation.steps import next_logits
from small_models import FAMILIES, prompts, small


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> HookedModel:
    """On the meta device, which has no numbers: whoever looks at one, or waits for one, fails too."""
    return small(request.param).to("meta")


@torch.no_grad()
def test_a_generation_stays_on_the_device_of_the_model(model):
    cache, tokens = model.new_cache(), prompts().to("meta")
    one = tokens[:, :1]
    logits = [next_logits(model, tokens, None, cache), next_logits(model, one, None, cache)]
    logits.append(next_logits(model, one, None, FixedCache(cache, model.window)))  # a step as it is recorded
    assert {x.device.type for x in logits} == {"meta"}


@torch.no_grad()
def test_listeners_stay_there_too(model):
    _, cache = model.run_with_cache(prompts().to("meta"), names_filter=lambda name: True)
    assert len(cache) == len(model.hook_points)
    assert {value.device.type for value in cache.values()} == {"meta"}
