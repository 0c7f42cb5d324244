"""Sweeps against plain PyTorch hooks on transformers' models: what is patched there is patched here."""

from contextlib import ExitStack
from itertools import product

import torch
from torch import nn

from families import PLAIN, ids, ours, theirs
from nnzoo.analysis import ablate, attribute_patches, causal_trace, patch_activations, patch_paths
from small_models import difference

# an RMSNorm's statistics are float32 whatever the model's dtype
TOLERANCE = {"gpt2": 1e-9, "llama": 1e-5, "mistral": 1e-5}
LAYERS, HEADS, POS, WIDTH = 3, 4, 9, 12


class Places:
    """The modules of a transformers model at which one listens."""

    def __init__(self, model: nn.Module, family: str) -> None:
        self.model, gpt2 = model, family == "gpt2"
        self.blocks = model.transformer.h if gpt2 else model.model.layers
        self.embed = model.transformer.wte if gpt2 else model.model.embed_tokens
        self.mixed = [block.attn.c_proj if gpt2 else block.self_attn.o_proj for block in self.blocks]
        self.queries = [block.attn.c_attn if gpt2 else block.self_attn.q_proj for block in self.blocks]
        self.attentions = [block.attn if gpt2 else block.self_attn for block in self.blocks]

    @torch.no_grad()
    def preference(self, tokens, inputs=(), outputs=()):
        """The metric of a run whose modules' first inputs and outputs are what functions make of them."""
        return last_difference(self.logits(tokens, inputs, outputs)).mean()

    def logits(self, tokens, inputs=(), outputs=()):
        with ExitStack() as stack:
            for module, change in inputs:
                hook = module.register_forward_pre_hook(
                    lambda module, args, kwargs, change=change: ((change(args[0]), *args[1:]), kwargs), with_kwargs=True
                )
                stack.callback(hook.remove)
            for module, change in outputs:
                hook = module.register_forward_hook(lambda module, args, out, change=change: change(out))
                stack.callback(hook.remove)
            return self.model(tokens, use_cache=False).logits

    @torch.no_grad()
    def inputs_of(self, modules, tokens, inputs=(), outputs=()):
        """What goes into modules in a run."""
        kept = {}
        looks = [(module, lambda x, i=i: kept.setdefault(i, x)) for i, module in enumerate(modules)]
        self.logits(tokens, [*inputs, *looks], outputs)
        return [kept[i] for i in range(len(modules))]


def last_difference(logits):
    return logits[:, -1, 3] - logits[:, -1, 5]


def putting(new, *where):
    """A function that puts a part of `new` into what it is given."""

    def change(x):
        x = x.clone()
        x[where] = new[where]
        return x

    return change


def head(i):
    return slice(WIDTH * i, WIDTH * (i + 1))


def two_prompts(batch=2):
    return torch.randint(0, 97, (batch, POS)), torch.randint(0, 97, (batch, POS))


@ids(PLAIN)
def test_patches_of_heads_are_those_of_hooks_on_the_projection(family, setting):
    model, there, (base, source) = ours(family, setting), Places(theirs(family, setting), family), two_prompts()
    z = there.inputs_of(there.mixed, source)
    whole = patch_activations(model, base, source, (3, 5), at="z").values
    single = patch_activations(model, base, source, (3, 5), at="z", by="pos head").values
    for layer, i in product(range(LAYERS), range(HEADS)):
        everywhere = putting(z[layer], ..., head(i))
        assert (
            difference(whole[layer, i], there.preference(base, [(there.mixed[layer], everywhere)])) < TOLERANCE[family]
        )
        for pos in (0, 5, POS - 1):
            one = putting(z[layer], slice(None), pos, head(i))
            expected = there.preference(base, [(there.mixed[layer], one)])
            assert difference(single[layer, pos, i], expected) < TOLERANCE[family]
    assert whole.std() > 1e-2


@ids(PLAIN)
def test_ablations_are_zeros_and_means_by_hooks(family, setting):
    model, there, (tokens, _) = ours(family, setting), Places(theirs(family, setting), family), two_prompts()
    zero = ablate(model, tokens, (3, 5), at="mlp_out").values
    mean = ablate(model, tokens, (3, 5), at="z", mode="mean").values
    z = there.inputs_of(there.mixed, tokens)
    for layer in range(LAYERS):
        expected = there.preference(tokens, outputs=[(there.blocks[layer].mlp, torch.zeros_like)])
        assert difference(zero[layer], expected) < TOLERANCE[family]
        average = z[layer].mean(dim=(0, 1)).expand_as(z[layer])
        for i in range(HEADS):
            hook = (there.mixed[layer], putting(average, ..., head(i)))
            assert difference(mean[layer, i], there.preference(tokens, [hook])) < TOLERANCE[family]


@ids(PLAIN)
def test_a_fact_is_traced_as_by_hooks_on_embeddings_and_blocks(family, setting):
    model, there, (tokens, _) = ours(family, setting), Places(theirs(family, setting), family), two_prompts(1)
    found = causal_trace(model, tokens, [1, 2], 3, samples=2, noise=0.3)
    table = there.embed.weight.detach()
    drawn = torch.randn(2, 2, 48, generator=torch.Generator().manual_seed(0)).double()
    clean = there.inputs_of(there.blocks, tokens)

    def blurred(x):
        x = x.clone()
        x[:, [1, 2]] += 0.3 * table.std() * drawn
        return x

    for layer, pos in product(range(LAYERS - 1), range(POS)):
        restored = putting(clean[layer + 1].expand(2, -1, -1), slice(None), pos)
        with torch.no_grad():
            logits = there.logits(tokens.repeat(2, 1), [(there.blocks[layer + 1], restored)], [(there.embed, blurred)])
        expected = logits[:, -1].softmax(dim=-1)[:, 3].mean()
        assert difference(found.values[layer, pos], expected) < 10 * TOLERANCE[family]


@ids(PLAIN)
def test_attributions_are_the_gradients_of_transformers(family, setting):
    model, there, (base, source) = ours(family, setting), Places(theirs(family, setting), family), two_prompts()
    new, kept = there.inputs_of(there.blocks, source), []

    def keep(x):
        kept.append(x.detach().requires_grad_() if not x.requires_grad else x)
        return kept[-1]

    score = last_difference(there.logits(base, [(block, keep) for block in there.blocks])).mean()
    gradients = torch.autograd.grad(score, kept)
    found = attribute_patches(model, base, source, (3, 5)).change.values
    for layer in range(LAYERS):
        expected = ((new[layer] - kept[layer]) * gradients[layer]).sum(dim=(0, 2)).detach()
        assert difference(found[layer], expected) < 1e3 * TOLERANCE[family]


@ids(PLAIN)
def test_paths_into_queries_are_three_runs_with_hooks(family, setting):
    model, there, (base, source) = ours(family, setting), Places(theirs(family, setting), family), two_prompts()
    receiver, i = 2, 1
    found = patch_paths(model, base, source, (3, 5), receivers=[(receiver, i)], into="q").values
    old, new = there.inputs_of(there.mixed, base), there.inputs_of(there.mixed, source)
    for layer, sender in product(range(receiver), range(HEADS)):
        frozen = [(module, putting(value, ...)) for module, value in zip(there.mixed, old, strict=True)]
        frozen.append((there.mixed[layer], putting(new[layer], ..., head(sender))))
        kept = []
        frozen_run = [(there.queries[receiver], lambda x, kept=kept: kept.append(x) or x)]
        with torch.no_grad():
            there.logits(base, frozen, frozen_run)
        expected = there.preference(base, outputs=[(there.queries[receiver], putting(kept[0], ..., head(i)))])
        assert difference(found[layer, sender], expected) < 10 * TOLERANCE[family]
    assert found.std() > 1e-4
