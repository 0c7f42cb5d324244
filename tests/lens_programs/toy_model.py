"""A toy model of the user's: HookPoints in a HookedRootModule."""

import torch
from transformer_lens.hook_points import HookedRootModule, HookPoint


class SquareThenAdd(HookedRootModule):
    def __init__(self, offset):
        super().__init__()
        self.offset = torch.nn.Parameter(torch.tensor(offset))
        self.hook_square = HookPoint()
        self.setup()

    def forward(self, x):
        return self.offset + self.hook_square(x * x)


class TwoLayerModel(HookedRootModule):
    def __init__(self):
        super().__init__()
        self.layer1 = SquareThenAdd(3.0)
        self.layers = torch.nn.ModuleList([SquareThenAdd(-4.0), torch.nn.Sequential(torch.nn.Identity(), HookPoint())])
        self.hook_in = HookPoint()
        self.hook_mid = HookPoint()
        self.hook_out = HookPoint()
        self.setup()

    def forward(self, x):
        x = self.layer1(self.hook_in(x))
        x = self.layers[0](self.hook_mid(x))
        return self.hook_out(self.layers[1](x))


model = TwoLayerModel()
out, cache = model.run_with_cache(torch.tensor(5.0))


def set_to_zero_hook(tensor, hook):
    return torch.tensor(0.0)


hooked = model.run_with_hooks(torch.tensor(10.0), fwd_hooks=[("layer1.hook_square", set_to_zero_hook)])
shapes = model.run_with_hooks(torch.ones(2, 3), fwd_hooks=[("hook_mid", lambda x, hook: x.sum(0))])
kept = model.add_caching_hooks(lambda name: "square" in name)
model(torch.tensor(2.0))
model.reset_hooks()
gradients = {}
with model.hooks(bwd_hooks=[(lambda name: True, lambda grad, hook: gradients.update({hook.name: grad.clone()}))]):
    model(torch.tensor(2.0, requires_grad=True)).backward()
_, with_gradients = model.run_with_cache(torch.tensor(2.0, requires_grad=True), incl_bwd=True)

results = {
    "out": out,
    "cache": dict(cache),
    "hooked": hooked,
    "shapes": shapes,
    "kept": kept,
    "after": model(torch.tensor(2.0)),
    "names": sorted(model.hook_dict),
    "modules": sorted(model.mod_dict),
    "gradients": gradients,
    "with gradients": {name: with_gradients[name] for name in ("hook_mid_grad", "hook_mid")},
    "parameters": [name for name, _ in model.named_parameters()],
    "point": isinstance(model.hook_in, torch.nn.Module),
}
