"""A tape serves the model that it was written for: one that does something else in the next generation has others."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook

from families import ours
from nnzoo.architectures.attention import Attention
from nnzoo.architectures.gpt2 import GPT2, MLP
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.hooks import Edit
from nnzoo.generation import taped
from recorded_steps import TOKENS, counted, decoded, plainly
from test_generation_taped import same


def fresh(family: str = "gpt2", setting: str = "untied") -> HookedModel:
    """A model without tapes."""
    return copy.deepcopy(ours(family, setting))


# --- what decides on a step beside the memory of its weights ------------------------------------------------------


def _scale(model: HookedModel) -> None:
    model.blocks[1].attn.scale *= 3


def _epsilon(model: HookedModel) -> None:
    model.blocks[1].ln1.eps = 0.5


def _activation(model: HookedModel) -> None:
    model.blocks[1].mlp.act = F.relu


def _function(model: HookedModel) -> None:
    act, calls = model.blocks[1].mlp.act, []
    model.blocks[1].mlp.act = lambda x: calls.append(1) or act(x) / len(calls)


def _method(model: HookedModel) -> None:
    forward = model.blocks[1].mlp.forward
    model.blocks[1].mlp.forward = lambda x: forward(x) / 2


def _class(model: HookedModel) -> None:
    class Half(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 2

    model.blocks[1].mlp.__class__ = Half


def _class_of_the_model(model: HookedModel) -> None:
    class Rising(GPT2):
        steps = 0

        def finish(self, x: Tensor) -> Tensor:
            self.steps += 1
            return super().finish(x) * self.steps

    model.__class__ = Rising


def _method_of_the_model(model: HookedModel) -> None:
    finish = model.finish
    model.finish = lambda x: -finish(x)


def _turned_weight(model: HookedModel) -> None:
    weight = model.blocks[1].attn.out.weight
    weight.data = weight.data.t()


def _fewer_tokens(model: HookedModel) -> None:
    model.unembed.weight.data = model.unembed.weight.data[:90]


def _one_more_block(model: HookedModel) -> None:
    block = copy.deepcopy(model.blocks[2])
    block.attn.layer = 3
    model.blocks.append(block)


def _other_hooks(model: HookedModel) -> None:
    calls: list[int] = []
    edit = Edit(lambda value, hook: value / len(calls) if calls.append(1) is None else value)
    model.hook_points["blocks.1.hook_resid_mid"].hooks = [edit]


CHANGES = [
    _scale,
    _epsilon,
    _activation,
    _function,
    _method,
    _class,
    _class_of_the_model,
    _method_of_the_model,
    _turned_weight,
    _fewer_tokens,
    _one_more_block,
    _other_hooks,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_changes_between_two_generations(change: Callable[[HookedModel], None]):
    model, other = fresh(), fresh()
    tokens = TOKENS.clamp(max=80)
    before = decoded(model, tokens)
    change(model)
    change(other)
    usual = plainly(decoded, other, tokens)
    same(decoded(model, tokens), usual)
    assert not torch.equal(torch.stack(before.logits), torch.stack(usual.logits))


def test_a_window_that_changes_between_two_generations():
    model = fresh("mistral", "window=7")
    decoded(model)
    model.window = 3
    same(decoded(model), plainly(decoded, model))


@pytest.mark.parametrize(("kind", "name"), [(MLP, "forward"), (Attention, "merge_heads")])
def test_a_class_that_changes_between_two_generations(kind, name, monkeypatch):
    model, method = fresh(), getattr(kind, name)
    before = decoded(model)
    with monkeypatch.context() as patched:
        patched.setattr(kind, name, lambda self, x: method(self, x) / 2)
        same(decoded(model), usual := plainly(decoded, model))
    same(decoded(model), before)
    assert not torch.equal(before.logits[0], usual.logits[0])


def test_modules_that_take_the_place_of_others_in_memory():
    model = fresh()
    decoded(model)
    for _ in range(6):  # each where the last but one was
        other = copy.deepcopy(model.blocks[1].mlp)
        other.down.weight.data.mul_(1.3)
        model.blocks[1].mlp = other
        del other
    same(decoded(model), plainly(decoded, model))


@pytest.mark.parametrize("before", [True, False])
def test_modules_that_draw_in_training_draw_at_each_step(before, recwarn):
    model = fresh()
    model.blocks[1].mlp = nn.Sequential(model.blocks[1].mlp, nn.Dropout(0.3))
    model.train(before)
    decoded(model)
    model.train()
    torch.manual_seed(0)
    usual = plainly(decoded, model)
    torch.manual_seed(0)
    same(decoded(model), usual)
    assert not recwarn.list


def test_a_module_that_pytorch_has_made_another_of_stays_outside():
    model, calls = fresh(), []
    mlp = model.blocks[1].mlp

    @wraps(mlp._call_impl)
    def call(x: Tensor) -> Tensor:
        calls.append(1)
        return mlp.forward(x)

    mlp._compiled_call_impl = call  # as `compile()` sets it; no tape hears of what that does
    with counted() as tapes:
        found = decoded(model)
    assert tapes.made == 2 and len(calls) == found.steps
    same(found, plainly(decoded, model))


class Own(Tensor):
    """A class of one's own, as what is made of it is."""


@pytest.mark.parametrize("of", ["weight", "value"])
def test_tensors_of_a_class_of_their_own_are_not_taped(of):
    model = fresh()
    if of == "weight":
        model.blocks[1].ln1.weight = nn.Parameter(model.blocks[1].ln1.weight.data.as_subclass(Own))
    else:
        model.add_hook("blocks.1.hook_resid_mid", lambda value, hook: value.as_subclass(Own))
    usual = plainly(decoded, model)
    with pytest.warns(UserWarning, match="failed: a tensor is of a class of its own, Own"):
        same(decoded(model), usual)


# --- what is around a generation ----------------------------------------------------------------------------------


CONTEXTS: dict[str, Callable[[], AbstractContextManager]] = {
    "another default device": lambda: torch.device("meta"),
    "another kernel": lambda: sdpa_kernel(SDPBackend.MATH),
    "inference mode": torch.inference_mode,
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
@pytest.mark.parametrize("inside", ["written", "replayed"])
def test_a_tape_is_written_and_replayed_in_a_context(context, inside, recwarn):
    model = fresh("llama", "default")
    if inside == "replayed":
        decoded(model)
    with context():
        usual = plainly(decoded, model)
        with counted() as tapes:
            same(decoded(model), usual)
    assert tapes.replays and not recwarn.list
    same(decoded(model), plainly(decoded, model))


def test_other_threads_have_other_tapes():
    model, threads = fresh(), torch.get_num_threads()
    decoded(model)
    try:
        torch.set_num_threads(threads + 1)  # products may go another way
        with counted() as tapes:
            decoded(model)
    finally:
        torch.set_num_threads(threads)
    assert tapes.made == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_tape_whose_comparison_was_interrupted_is_not_used(error):
    model = fresh()
    with patch.object(taped, "compare", side_effect=error), pytest.raises(error):
        decoded(model)
    gc.collect()  # of the error's frames
    with counted() as tapes:
        same(decoded(model), plainly(decoded, model))
    assert tapes.made == 1


# --- what is kept -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["point", "module"])
def test_a_model_that_its_hooks_know_goes(how):
    model = fresh()
    known = [model]
    if how == "point":
        model.add_hook("blocks.1.hook_resid_pre", lambda value, hook: value * len(known))
    else:
        model.blocks[1].mlp.register_forward_hook(lambda module, args, out: out * len(known))
    decoded(model)
    gone = weakref.ref(model)
    del model, known
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_model_has_tapes_of_its_own(copied):
    model = fresh()
    model.blocks[1].mlp.act = F.relu  # a partial of a builtin function
    decoded(model)
    handle = register_module_forward_hook(lambda module, args, out: out)  # no part of the model, and not to be stored
    other = copied(model)
    handle.remove()
    other.blocks[1].attn.scale *= 3
    with counted() as tapes:
        same(decoded(other), plainly(decoded, other))
        same(decoded(model), plainly(decoded, model))
    assert tapes.made == 1


def test_weights_that_were_replaced_go_at_the_next_long_generation():
    model = fresh()
    decoded(model)
    memory = weakref.ref(model.unembed.weight.untyped_storage())
    kept = weakref.ref(taped._kept[vars(model)["_listeners"]][0])
    model.half()
    decoded(model)
    assert kept() is None and memory() is None
