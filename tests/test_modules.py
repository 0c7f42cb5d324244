"""A module that is called with less ado is PyTorch's module all the same: whoever listens there is heard."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn
from torch.nn.modules import module as pytorch

from nnzoo.architectures.hooks import HookPoint
from nnzoo.architectures.modules import Module
from nnzoo.weights import load
from small_models import small

X = torch.tensor([[3, 1, 4, 1]])


class Double(Module):
    def forward(self, x: torch.Tensor, *, times: int = 2) -> torch.Tensor:
        return times * x


OWN = {  # how PyTorch's hooks are registered, and what they are called with
    "register_forward_pre_hook": lambda heard: lambda module, args: heard.append("pre"),
    "register_forward_hook": lambda heard: lambda module, args, output: heard.append("forward"),
    "register_full_backward_pre_hook": lambda heard: lambda module, gradients: heard.append("backward pre"),
    "register_full_backward_hook": lambda heard: lambda module, inputs, outputs: heard.append("backward"),
    "register_backward_hook": lambda heard: lambda module, inputs, outputs: heard.append("old backward"),
}
OF_ALL = {
    "register_module_forward_pre_hook": OWN["register_forward_pre_hook"],
    "register_module_forward_hook": OWN["register_forward_hook"],
    "register_module_full_backward_pre_hook": OWN["register_full_backward_pre_hook"],
    "register_module_full_backward_hook": OWN["register_full_backward_hook"],
    "register_module_backward_hook": OWN["register_backward_hook"],
}


def heard_in_a_pass(module: nn.Module, register, hook) -> tuple[list, list]:
    """What one hook heard of a pass and its backward pass, and what it heard after it was removed."""
    heard: list[str] = []
    handle = register(hook(heard))
    try:
        module(torch.ones(2, requires_grad=True)).sum().backward()
    finally:
        handle.remove()
    before = list(heard)
    module(torch.ones(2, requires_grad=True)).sum().backward()
    return before, heard[len(before) :]


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook")
@pytest.mark.parametrize("name", OWN)
def test_a_modules_own_hooks_are_heard(name):
    module = Double()
    heard, after = heard_in_a_pass(module, getattr(module, name), OWN[name])
    assert heard and not after


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook")
@pytest.mark.parametrize("name", OF_ALL)
def test_hooks_of_all_modules_are_heard(name, monkeypatch):
    monkeypatch.setattr(pytorch, "_global_is_full_backward_hook", None)  # the first one decides for a whole process
    heard, after = heard_in_a_pass(Double(), getattr(pytorch, name), OF_ALL[name])
    assert heard and not after


def test_pytorch_knows_no_other_ways_to_register_a_hook():
    """One that were new would have to be asked after in `Module.__call__`."""
    of_calls = {
        name
        for name in (*dir(nn.Module), *dir(pytorch))
        if name.startswith("register_") and name.endswith("_hook") and "state_dict" not in name
    }
    of_state = {name for name in of_calls if "registration" in name}  # of buffers, parameters and modules being set
    assert of_calls - of_state == {*OWN, *OF_ALL}
    asked = inspect.getsource(Module.__call__)
    assert all(f"self.{name}" in asked for name in vars(nn.Module()) if name.endswith("_hooks") and "dict" not in name)


def test_what_a_hook_gives_back_goes_on():
    module = Double()
    module.register_forward_pre_hook(lambda module, args, kwargs: (args, {"times": 5}), with_kwargs=True)
    assert module(torch.ones(1), times=3).item() == 5


def test_a_module_compiled_in_place_runs_what_was_compiled():
    module = Double()
    module.compile(backend=lambda graph, inputs: lambda *args: (torch.full((1,), 7.0),))
    assert module(torch.ones(1)).item() == 7


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_every_module_in_the_blocks_of_a_model_is_heard(family):
    model = small(family)
    heard = set()
    inside = {name: module for name, module in model.blocks.named_modules() if name}
    for name, module in inside.items():
        module.register_forward_hook(lambda module, args, output, name=name: heard.add(name))
    model(X)
    assert heard == inside.keys()


@pytest.mark.parametrize("again", [copy.deepcopy, lambda point: pickle.loads(pickle.dumps(point))])
def test_a_copied_hook_point_has_all_of_it(again):
    point = HookPoint("batch pos", on_request=True)
    point.name, point.sizes, point.ctx["seen"], point.mine = "hook_x", {"pos": 3}, 1, "mine"
    new = again(point)
    assert (new.axes, new.name, new.sizes, new.ctx, new.on_request, new.hooks, new.mine) == (
        "batch pos", "hook_x", {"pos": 3}, {"seen": 1}, True, [], "mine",
    )  # fmt: skip
    new.add_hook(lambda value, hook: value + 1)
    assert not point.hooks


def test_a_model_is_pickled_with_its_tokenizer():
    model = load("nnzoo/tiny-llama")
    new = pickle.loads(pickle.dumps(model))
    text = "The capital of France is"
    assert torch.equal(new(text), model(text))
    assert new.to_str_tokens(text) == model.to_str_tokens(text)
    assert new.hook_points["blocks.0.hook_resid_pre"] is new.blocks[0].hook_resid_pre
