"""Gradients: attribution, saliency, gradients that are changed on their way, and training of one's own modules."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from programs import Values, program
from programs.patching import CORRUPT, SHORT
from programs.reading import IOI
from reference_values import Seen, Theirs

MARY, JOHN = 500, 400  # any two tokens


def difference(logits: Tensor) -> Tensor:
    """The score that attribution explains."""
    return (logits[:, -1, MARY] - logits[:, -1, JOHN]).sum()


def with_gradients(theirs: Theirs, prompt: str, *places: str) -> Seen:
    """A pass of transformers and the gradient of the score at every place."""
    seen = theirs.forward(prompt, read=places, grad=True)
    difference(seen.logits).backward()
    return seen


@program("gpt2", "llama", "mistral", rename={"transformer.h": "blocks", "model.layers": "blocks"})
def a_gradient_in_a_backward_block(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        hidden = model.blocks[1].output[0]
        loss = difference(model.lm_head.output)
        with loss.backward():
            grad = hidden.grad.save()
    return {"grad": grad}


@a_gradient_in_a_backward_block.expected
def _(theirs: Theirs) -> Values:
    return {"grad": with_gradients(theirs, IOI, theirs.block(1))[theirs.block(1)].grad}


@program("gpt2", differs="a .grad is read in a backward block")
def a_gradient_asked_before_the_backward_line(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        hidden = model.transformer.h[1].output[0].save()
        grad = hidden.grad.save()
        late = model.transformer.h[2].mlp.output.grad.save()
        difference(model.lm_head.output).backward()
    return {"grad": grad, "late": late, "after the block": hidden.grad}


@a_gradient_asked_before_the_backward_line.expected
def _(theirs: Theirs) -> Values:
    seen = with_gradients(theirs, IOI, theirs.block(1), theirs.block(2, "mlp.output"))
    grad = seen[theirs.block(1)].grad
    return {"grad": grad, "late": seen[theirs.block(2, "mlp.output")].grad, "after the block": grad}


@program("gpt2", "llama", rename={"transformer.h": "blocks", "model.layers": "blocks"})
def attribution_patching(model: Any, api: Any) -> Values:
    n_layers = len(model.blocks)
    clean, corrupt, grads = ({} for _ in range(3))
    with torch.no_grad():
        with model.trace(IOI):
            for i in range(n_layers):
                clean[i] = model.blocks[i].output[0].save()
    with model.trace(CORRUPT):
        hidden = []
        for i in range(n_layers):
            hidden.append(model.blocks[i].output[0])
            corrupt[i] = hidden[i].save()
        loss = difference(model.lm_head.output)
        with loss.backward():
            for i in reversed(range(n_layers)):
                grads[i] = hidden[i].grad.save()
    scores = [((clean[i] - corrupt[i].detach()) * grads[i]).sum(-1)[0] for i in range(n_layers)]
    return {"attribution": torch.stack(scores)}


@attribution_patching.expected
def _(theirs: Theirs) -> Values:
    places = [theirs.block(i) for i in range(theirs.n_layers)]
    clean, corrupt = theirs.forward(IOI, read=places), with_gradients(theirs, CORRUPT, *places)
    scores = [((clean[one] - corrupt[one].detach()) * corrupt[one].grad).sum(-1)[0] for one in places]
    return {"attribution": torch.stack(scores)}


@program("gpt2")
def attribution_of_heads(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        z = model.transformer.h[2].attn.c_proj.input
        values = z.save()
        with difference(model.lm_head.output).backward():
            grad = z.grad.save()
    return {"heads": (values.detach() * grad).view(1, 14, 4, 12).sum((0, 1, 3))}


@attribution_of_heads.expected
def _(theirs: Theirs) -> Values:
    place = theirs.block(2, "attn.c_proj.input")
    z = with_gradients(theirs, IOI, place)[place]
    return {"heads": (z.detach() * z.grad).view(1, 14, 4, 12).sum((0, 1, 3))}


@program("gpt2", "mistral")
def saliency_of_the_tokens(model: Any, api: Any) -> Values:
    embedding = model.transformer.wte if hasattr(model, "transformer") else model.model.embed_tokens
    with model.trace(IOI):
        vectors = embedding.output
        vectors.retain_grad()
        kept = vectors.save()
        difference(model.lm_head.output).backward()
    return {"saliency": (kept.detach() * kept.grad).sum(-1)}


@saliency_of_the_tokens.expected
def _(theirs: Theirs) -> Values:
    place = "transformer.wte.output" if theirs.family == "gpt2" else "model.embed_tokens.output"
    vectors = with_gradients(theirs, IOI, place)[place]
    return {"saliency": (vectors.detach() * vectors.grad).sum(-1)}


@program("gpt2")
def a_gradient_changed_on_its_way(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        early = model.transformer.h[0].output[0]
        late = model.transformer.h[2].output[0]
        loss = difference(model.lm_head.output)
        with loss.backward():
            arrived = late.grad.save()
            late.grad = late.grad * 3 + 0.1
            grad = early.grad.save()
    return {"arrived": arrived, "grad": grad}


@a_gradient_changed_on_its_way.expected
def _(theirs: Theirs) -> Values:
    seen = theirs.forward(IOI, read=[theirs.block(0), theirs.block(2)], grad=True)
    arrived: list[Tensor] = []

    def change(grad: Tensor) -> Tensor:
        arrived.append(grad.clone())
        return grad * 3 + 0.1

    seen[theirs.block(2)].register_hook(change)
    difference(seen.logits).backward()
    return {"arrived": arrived[0], "grad": seen[theirs.block(0)].grad}


@program("gpt2")
def a_gradient_stopped_at_one_position(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        early = model.transformer.h[0].output[0]
        late = model.transformer.h[2].output[0]
        with difference(model.lm_head.output).backward():
            stopped = late.grad.clone()
            stopped[:, :-1] = 0
            late.grad = stopped
            grad = early.grad.save()
    return {"grad": grad}


@a_gradient_stopped_at_one_position.expected
def _(theirs: Theirs) -> Values:
    def only_the_last(grad: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(grad[:, :-1]), grad[:, -1:]], dim=1)

    seen = theirs.forward(IOI, read=[theirs.block(0), theirs.block(2)], grad=True)
    seen[theirs.block(2)].register_hook(only_the_last)
    difference(seen.logits).backward()
    return {"grad": seen[theirs.block(0)].grad}


@program("gpt2")
def two_losses_on_one_graph(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        hidden = model.transformer.h[1].output[0]
        logits = model.lm_head.output
        with logits[0, -1, MARY].backward(retain_graph=True):
            mary = hidden.grad.save()
        with logits[0, -1, JOHN].backward():
            john = hidden.grad.save()
    return {"mary": mary, "john": john}


@two_losses_on_one_graph.expected
def _(theirs: Theirs) -> Values:
    seen = theirs.forward(IOI, read=[theirs.block(1)], grad=True)
    hidden, logits = seen[theirs.block(1)], seen.logits
    mary, john = (torch.autograd.grad(logits[0, -1, i], hidden, retain_graph=True)[0] for i in (MARY, JOHN))
    return {"mary": mary, "john": john}


@program("gpt2", "llama", differs="the first backward frees the graph that the invokes share",
         rename={"transformer.h": "blocks", "model.layers": "blocks"})  # fmt: skip
def a_backward_in_every_invoke(model: Any, api: Any) -> Values:
    with model.trace() as tracer:
        grads = api.save({})
        for name, prompt in (("long", IOI), ("short", SHORT)):
            with tracer.invoke(prompt):
                hidden = model.blocks[1].output[0]
                with difference(model.lm_head.output).backward():
                    grads[name] = hidden.grad
    return dict(grads)


@a_backward_in_every_invoke.expected
def _(theirs: Theirs) -> Values:
    place = theirs.block(1)
    return {name: with_gradients(theirs, p, place)[place].grad for name, p in (("long", IOI), ("short", SHORT))}


@program("gpt2")
def a_gradient_of_an_edited_pass(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        model.transformer.h[1].mlp.output[:, -1] = 0
        mlp = model.transformer.h[2].mlp.output
        with difference(model.lm_head.output).backward():
            grad = mlp.grad.save()
    return {"grad": grad}


@a_gradient_of_an_edited_pass.expected
def _(theirs: Theirs) -> Values:
    def zero_the_last(h: Tensor) -> Tensor:
        h[:, -1] = 0
        return h

    place = theirs.block(2, "mlp.output")
    seen = theirs.forward(IOI, read=[place], edits={theirs.block(1, "mlp.output"): zero_the_last}, grad=True)
    difference(seen.logits).backward()
    return {"grad": seen[place].grad}


@program("gpt2")
def the_gradient_of_a_steering_vector(model: Any, api: Any) -> Values:
    vector = torch.zeros(48, dtype=torch.float64, requires_grad=True)
    with model.trace(IOI):
        model.transformer.h[1].output[0][:] += vector
        score = difference(model.lm_head.output).save()
    score.backward()
    return {"grad": vector.grad, "score": score.detach()}


@the_gradient_of_a_steering_vector.expected
def _(theirs: Theirs) -> Values:
    seen = with_gradients(theirs, IOI, theirs.block(1))
    return {"grad": seen[theirs.block(1)].grad.sum((0, 1)), "score": difference(seen.logits).detach()}


class Lora(nn.Module):
    """A rank-two addition to a module."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(11)
        self.down = nn.Parameter(torch.randn(48, 2, generator=generator, dtype=torch.float64) * 0.1)
        self.up = nn.Parameter(torch.randn(2, 48, generator=generator, dtype=torch.float64) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.down @ self.up


TARGET = torch.tensor([MARY])


@program("gpt2", "llama", rename={"transformer.h": "blocks", "model.layers": "blocks"})
def train_a_lora(model: Any, api: Any) -> Values:
    lora, losses = Lora(), []
    optimizer = torch.optim.SGD(lora.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        with model.trace(IOI):
            mlp = model.blocks[2].mlp
            added = lora(mlp.input)
            mlp.output = mlp.output + added
            loss = F.cross_entropy(model.lm_head.output[:, -1], TARGET).save()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {"up": lora.up.detach(), "down": lora.down.detach(), "first": losses[0], "last": losses[-1]}


@train_a_lora.expected
def _(theirs: Theirs) -> Values:
    lora, losses, entered = Lora(), [], []
    optimizer = torch.optim.SGD(lora.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        edits = {
            theirs.block(2, "mlp.input"): lambda x: entered.append(x) or x,
            theirs.block(2, "mlp.output"): lambda h: h + lora(entered[-1]),
        }
        loss = F.cross_entropy(theirs.forward(IOI, edits=edits, grad=True).logits[:, -1], TARGET)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {"up": lora.up.detach(), "down": lora.down.detach(), "first": losses[0], "last": losses[-1]}


@program("gpt2")
def train_a_probe_inside_the_trace(model: Any, api: Any) -> Values:
    probe = nn.Linear(48, 2, dtype=torch.float64)
    nn.init.constant_(probe.weight, 0.01)
    nn.init.zeros_(probe.bias)
    with model.trace(IOI):
        scores = probe(model.transformer.h[2].output[0][:, -1])
        loss = F.cross_entropy(scores, torch.tensor([1]))
        loss.backward()
    return {"weight": probe.weight.grad, "bias": probe.bias.grad}


@train_a_probe_inside_the_trace.expected
def _(theirs: Theirs) -> Values:
    hidden = theirs.forward(IOI, read=[theirs.block(2)])[theirs.block(2)][:, -1]
    half = torch.tensor([0.5, -0.5], dtype=torch.float64)  # both scores are equal, the second is right
    return {"weight": half[:, None] * hidden, "bias": half}
