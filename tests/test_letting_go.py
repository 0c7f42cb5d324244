"""What nobody has any more is let go of at once: its memory serves the next run, and waits for no garbage collector."""

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nnzoo import LanguageModel
from nnzoo.transformer_lens import HookedTransformer
from small_models import prompts, small

IDS = prompts()
MODEL = LanguageModel("nnzoo/tiny-gpt2")


def cache() -> None:
    small("llama").run_with_cache(IDS)


def cache_on_a_device() -> None:
    small("gpt2").run_with_cache(IDS, device="meta", pos_slice=-1)


def cache_with_gradients() -> None:
    model = small("gpt2").requires_grad_(True)
    model.run_with_cache(IDS, return_type="loss", incl_bwd=True)
    model.zero_grad()


def cache_of_transformer_lens() -> None:
    HookedTransformer.from_pretrained("nnzoo/tiny-gpt2").run_with_cache(IDS)


def hooks() -> None:
    small("gpt2").run_with_hooks(IDS, fwd_hooks=[("blocks.1.hook_resid_post", lambda value, hook: value * 2)])


def trace() -> None:
    with MODEL.trace(IDS):
        hidden = MODEL.transformer.h[1].output[0]
        norm = float(hidden.norm())  # a look
        hidden[:] = hidden * norm
        MODEL.lm_head.output.save()


def gradients() -> None:
    with MODEL.trace(IDS):
        hidden = MODEL.transformer.h[1].output[0]
        above = hidden.grad.save()
        with MODEL.lm_head.output.sum().backward():
            hidden.grad.save()
        (above * 2).save()


def gradients_that_are_set() -> None:
    with MODEL.trace(IDS):
        hidden, earlier = MODEL.transformer.h[1].output[0], MODEL.transformer.h[0].output[0]
        with MODEL.lm_head.output.sum().backward():
            hidden.grad = hidden.grad * 2
            hidden.grad[:, 0] = 0
            earlier.grad.save()


def invokes() -> None:
    with MODEL.trace() as tracer:
        with tracer.invoke(IDS[:1]):
            last = MODEL.transformer.h[1].output[0][:, -1]
        with tracer.invoke(IDS[1:2]):
            MODEL.transformer.h[1].output[0][:, -1] = last
            MODEL.lm_head.output.save()


def traced_cache() -> None:
    with MODEL.trace(IDS) as tracer:
        tracer.cache()


def generation() -> None:
    with MODEL.generate(IDS, max_new_tokens=20) as tracer:
        for _ in tracer.iter[:]:
            MODEL.transformer.h[1].output[0].save()


@pytest.mark.local("what is let go of is this process's")
@pytest.mark.parametrize(
    "program",
    [
        cache,
        cache_on_a_device,
        cache_with_gradients,
        cache_of_transformer_lens,
        hooks,
        trace,
        gradients,
        gradients_that_are_set,
        invokes,
        traced_cache,
        generation,
    ],
    ids=lambda program: program.__name__,
)
def test_all_tensors_of_a_program_are_gone_when_it_is_over(program: Callable[[], None]):
    for _ in range(2):  # what is made once a model is made
        program()
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        for _ in range(3):
            program()
        assert tensors() - before < 3
    finally:
        gc.enable()


def tensors() -> int:
    return sum(type(one) in (Tensor, torch.nn.Parameter) for one in gc.get_objects())
