"""Programs of all kinds, each to be run with and without remote=True: what they give is compared."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

PROMPT, OTHER = "The cat sat on the", "The dog ran through the"


def reading_and_writing(model: Any, **how: Any) -> dict[str, Any]:
    with model.trace(PROMPT, **how) as tracer:
        hidden = model.blocks[1].output[0].save()
        model.blocks[2].output[0][:, -1] += 2 * hidden[:, 0]
        pattern = model.blocks[3].self_attn.output[1].save() if "self_attn" in str(model) else hidden.softmax(-1).save()
        lens = model.lm_head(model.final(hidden)).save()
        by_weight = (hidden @ model.lm_head.weight.T).norm().save()
        logits = tracer.result.save()
    return {"hidden": hidden, "pattern": pattern, "lens": lens, "by weight": by_weight, "logits": logits.logits}


def invokes(model: Any, **how: Any) -> dict[str, Any]:
    with model.trace(max_batch=3, **how) as tracer:
        with tracer.invoke(PROMPT):
            cat = model.blocks[3].output[0][:, -1].save()
        with tracer.invoke([OTHER, "Hello world"]):
            model.blocks[0].output[0][:, -1] = cat
            patched = model.output.save()
        with tracer.invoke():
            whole = model.blocks[2].output[0].save()
    return {"cat": cat, "patched": patched, "whole": whole}


def looking(model: Any, **how: Any) -> dict[str, Any]:
    with model.trace(PROMPT, **how):
        hidden = model.blocks[0].output[0]
        if hidden.norm() > 1:
            hidden[:] *= 0.5
        number = hidden.norm().item()
        logits = model.output.save()
        top = logits[0, -1].argmax().item()
    return {"number": number, "top": top, "logits": logits}


def generating(model: Any, **how: Any) -> dict[str, Any]:
    norms = []
    with model.generate(PROMPT, max_new_tokens=5, eos_token_id=None, **how) as tracer:
        for step in tracer.iter[:]:
            norms.append(model.blocks[1].output[0].norm().save())
            if step == 2:
                model.blocks[2].mlp.output[:] = 0
        with tracer.iter[1:3]:
            streams = model.blocks[3].output[0].save()
        ids = tracer.result.save()
    return {
        "norms": norms,
        "streams": streams,
        "ids": ids,
        "plain": model.generate(PROMPT, max_new_tokens=4, **how) + 0,
    }


def generating_inside(model: Any, **how: Any) -> dict[str, Any]:
    with model.trace(**how) as tracer:
        with tracer.invoke(PROMPT):
            model.blocks[1].output[0][:] *= 1.2
            first = model.generate(max_new_tokens=4)
        with tracer.invoke(OTHER):
            second = model.generate(max_new_tokens=3)
    return {"first": first, "second": second}


def ending_early(model: Any, **how: Any) -> dict[str, Any]:
    ids = model.generate(PROMPT, max_new_tokens=12, eos_token_id=None, **how)
    stop = int(ids[0, ids.shape[1] - 6])
    logits = []
    with model.generate(PROMPT, max_new_tokens=12, eos_token_id=stop, **how) as tracer:
        for _ in tracer.iter[:]:
            logits.append(model.output[:, -1].save())
        with tracer.iter[0:12]:
            tokens = model.output[:, -1].argmax(-1).save()
        short = tracer.result.save()
    return {"logits": logits, "tokens": tokens, "short": short}


def drawing(model: Any, **how: Any) -> dict[str, Any]:
    plain = model.generate(PROMPT, max_new_tokens=6, do_sample=True, temperature=3.0, **how)
    noise = torch.rand(2)
    with model.generate(
        PROMPT, max_new_tokens=6, do_sample=True, temperature=3.0, num_return_sequences=3, **how
    ) as tracer:
        ids = tracer.result.save()
    seeded = model.generate(PROMPT, max_new_tokens=6, do_sample=True, seed=5, temperature=3.0, **how)
    with model.trace(PROMPT, **how):
        dropped = F.dropout(model.blocks[0].output[0], 0.5).save()
    return {
        "plain": plain + 0,
        "noise": noise,
        "ids": ids,
        "seeded": seeded + 0,
        "dropped": dropped,
        "after": torch.rand(2),
    }


def differentiating(model: Any, **how: Any) -> dict[str, Any]:
    vector = torch.full((48,), 0.1, dtype=torch.float64, requires_grad=True)
    vector.grad = torch.ones_like(vector)
    with model.trace(PROMPT, **how):
        early, late = model.blocks[0].output[0].save(), model.blocks[2].output[0]
        model.blocks[1].output[0][:] += vector
        loss = -model.output[0, -1, 7]
        asked = late.grad.save()
        with loss.backward(retain_graph=True):
            late.grad = late.grad * 2
            flowing = model.blocks[1].mlp.output.grad.save()
        model.output[0, -2, 3].backward()
    return {"early": early, "early.grad": early.grad, "asked": asked, "flowing": flowing, "vector": vector.grad}


def differentiating_afterwards(model: Any, **how: Any) -> dict[str, Any]:
    torch.manual_seed(11)
    adapter = nn.Linear(48, 48, dtype=torch.float64)
    optimizer, losses = torch.optim.Adam(adapter.parameters(), lr=0.01), []
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    for _ in range(3):
        optimizer.zero_grad()
        with model.trace(PROMPT, **how):
            _ = model.blocks[0].output[0].norm().save()
            model.blocks[1].mlp.output = model.blocks[1].mlp.output + adapter(model.blocks[1].mlp.input) * (3 * scale)
            loss = F.cross_entropy(model.output[:, -1], torch.tensor([5])).save()
        (loss * 2).backward()
        optimizer.step()
        losses.append(loss.detach())
    return {
        "losses": losses,
        "weight": adapter.weight.detach(),
        "scale": scale.grad,
        "learns": loss.requires_grad,
    }


def caching(model: Any, **how: Any) -> dict[str, Any]:
    with model.trace(PROMPT, **how) as tracer:
        cache = tracer.cache(include_inputs=True)
        model.blocks[1].output[0][:] = 0
    with model.generate(PROMPT, max_new_tokens=3, **how) as tracer:
        steps = tracer.cache([model.blocks[2].mlp])
    path = next(key for key in cache if key.endswith("2.mlp"))
    return {"keys": list(cache), "output": cache[path].output, "input": cache[path].input, "steps": steps[path].output}


def edited(model: Any, **how: Any) -> dict[str, Any]:
    with model.edit() as other:
        other.blocks[1].mlp.output[:] *= 0.5
        for _ in other.tracer.iter[:]:
            other.blocks[2].output[0][:] *= 0.9
    with other.trace(PROMPT, **how):
        logits = other.output.save()
    return {"logits": logits, "ids": other.generate(PROMPT, max_new_tokens=4, **how) + 0}


def without_a_body(model: Any, **how: Any) -> dict[str, Any]:
    tokens = torch.tensor([[3, 5, 7, 9]])
    logits = model.trace(tokens, labels=tokens, trace=False, **how)
    return {"logits": logits.logits, "loss": logits.loss}


PROGRAMS = [
    reading_and_writing, invokes, looking, generating, generating_inside, ending_early, drawing, differentiating,
    differentiating_afterwards, caching, edited, without_a_body,
]  # fmt: skip
