"""Generation: the prompt's pass, later steps, and what comes out."""

from typing import Any

import torch
from torch import Tensor

from programs import Values, program
from programs.patching import PADDED
from programs.reading import IOI
from reference_values import Theirs

STORY = "Once upon a time"
N = 4
BOTH = {"transformer.h": "blocks", "model.layers": "blocks"}
SHIFT = torch.linspace(-20, 20, 48, dtype=torch.float64)  # a smaller one leaves the greedy tokens as they are
ONCE = "the body of `with tracer.iter[...]` runs at every step, so a name holds the last one's value"
NO_NEXT = ".next() is gone"


@program("gpt2", "llama", "mistral")
def generate(model: Any, api: Any) -> Values:
    with model.generate(STORY, max_new_tokens=N) as tracer:
        ids = tracer.result.save()
    return {"ids": ids, "text": model.tokenizer.decode(ids[0])}


@generate.expected
def _(theirs: Theirs) -> Values:
    ids, _ = theirs.generate(STORY, N)
    return {"ids": ids, "text": theirs.tokenizer.decode(ids[0])}


@program("gpt2", "llama")
def generate_without_a_body(model: Any, api: Any) -> Values:
    return {"ids": model.generate(STORY, max_new_tokens=N)}


@generate_without_a_body.expected
def _(theirs: Theirs) -> Values:
    return {"ids": theirs.generate(STORY, N)[0]}


@program("gpt2")
def the_generators_output(model: Any, api: Any) -> Values:
    with model.generate(STORY, max_new_tokens=N):
        ids = model.generator.output.save()
    return {"ids": ids}


@the_generators_output.expected
def _(theirs: Theirs) -> Values:
    return {"ids": theirs.generate(STORY, N)[0]}


@program("gpt2", "llama", "mistral", rename=BOTH)
def steer_the_prompt_only(model: Any, api: Any) -> Values:
    with model.generate(STORY, max_new_tokens=N) as tracer:
        model.blocks[1].output[0][:] += SHIFT
        hidden = model.blocks[2].output[0].save()
        ids = tracer.result.save()
    return {"ids": ids, "hidden": hidden}


@steer_the_prompt_only.expected
def _(theirs: Theirs) -> Values:
    ids, values = theirs.generate(STORY, N, read=[theirs.block(2)], edits={theirs.block(1): lambda h: h + SHIFT})
    return {"ids": ids, "hidden": values[theirs.block(2)][0]}


@program("gpt2", "llama", rename=BOTH, differs="generate() inside an invoke fails")
def generate_inside_an_invoke(model: Any, api: Any) -> Values:
    with model.trace() as tracer:
        with tracer.invoke(STORY):
            model.blocks[1].output[0][:] += SHIFT
            ids = model.generate(max_new_tokens=N)
        with tracer.invoke(IOI):
            others = model.generate(max_new_tokens=N)
    return {"ids": ids, "others": others}


@generate_inside_an_invoke.expected
def _(theirs: Theirs) -> Values:
    ids, _ = theirs.generate(STORY, N, edits={theirs.block(1): lambda h: h + SHIFT})
    return {"ids": ids, "others": theirs.generate(IOI, N)[0]}


@program("gpt2", "llama", "mistral", rename=BOTH)
def steer_every_step(model: Any, api: Any) -> Values:
    with model.generate(STORY, max_new_tokens=N) as tracer:
        for _ in tracer.iter[:N]:
            model.blocks[1].output[0][:, -1] += SHIFT
        ids = tracer.result.save()
    return {"ids": ids}


def shift_the_last(h: Tensor) -> Tensor:
    h[:, -1] += SHIFT
    return h


@steer_every_step.expected
def _(theirs: Theirs) -> Values:
    return {"ids": theirs.generate(STORY, N, edits={theirs.block(1): shift_the_last}, steps=range(N))[0]}


@program("gpt2", "llama", rename=BOTH, differs="an open loop drops the statements after it")
def steer_all(model: Any, api: Any) -> Values:
    with model.generate(STORY, max_new_tokens=N) as tracer:
        for _ in tracer.all():
            model.blocks[1].output[0][:, -1] += SHIFT
        ids = tracer.result.save()
    return {"ids": ids}


@steer_all.expected
def _(theirs: Theirs) -> Values:
    return {"ids": theirs.generate(STORY, N, edits={theirs.block(1): shift_the_last}, steps=range(N))[0]}


@program("gpt2", "llama", rename=BOTH, differs="the edit holds, and the statement after the block is dropped")
def steer_all_in_a_block(model: Any, api: Any) -> Values:
    """nnsight 0.4 and 0.5: the block instead of the loop."""
    with model.generate(STORY, max_new_tokens=N) as tracer:
        with tracer.all():
            model.blocks[1].output[0][:, -1] += SHIFT
        ids = tracer.result.save()
    return {"ids": ids}


@steer_all_in_a_block.expected
def _(theirs: Theirs) -> Values:
    return {"ids": theirs.generate(STORY, N, edits={theirs.block(1): shift_the_last}, steps=range(N))[0]}


@program("gpt2", "llama", "mistral", rename=BOTH)
def collect_every_step(model: Any, api: Any) -> Values:
    with model.generate(STORY, max_new_tokens=N) as tracer:
        hidden, tokens = api.save([]), api.save([])
        for _ in tracer.iter[:]:
            hidden.append(model.blocks[2].output[0])
            tokens.append(model.lm_head.output[0, -1].argmax(dim=-1))
    return {"hidden": list(hidden), "tokens": torch.stack(tokens)}


@collect_every_step.expected
def _(theirs: Theirs) -> Values:
    ids, values = theirs.generate(STORY, N, read=[theirs.block(2)])
    return {"hidden": values[theirs.block(2)], "tokens": ids[0, -N:]}


@program("gpt2")
def act_by_the_number_of_the_step(model: Any, api: Any) -> Values:
    with model.generate(STORY, max_new_tokens=N) as tracer:
        norms = api.save([])
        for step in tracer.iter[:N]:
            if step == 2:
                model.transformer.h[1].output[0][:] = 0
            norms.append(model.transformer.h[2].output[0][:, -1].norm())
        ids = tracer.result.save()
    return {"ids": ids, "norms": torch.stack(norms)}


@act_by_the_number_of_the_step.expected
def _(theirs: Theirs) -> Values:
    edits, place = {theirs.block(1): torch.zeros_like}, theirs.block(2)
    ids, values = theirs.generate(STORY, N, read=[place], edits=edits, steps=[2])
    return {"ids": ids, "norms": torch.stack([h[:, -1].norm() for h in values[place]])}


@program("gpt2", "llama", rename=BOTH)
def some_steps(model: Any, api: Any) -> Values:
    with model.generate(STORY, max_new_tokens=N) as tracer:
        seen = api.save({})
        for step in tracer.iter[[0, 2]]:
            seen[step] = model.blocks[2].output[0]
        for step in tracer.iter[3]:
            seen[step] = model.blocks[2].output[0]
    return {f"step {step}": value for step, value in seen.items()}


@some_steps.expected
def _(theirs: Theirs) -> Values:
    _, values = theirs.generate(STORY, N, read=[theirs.block(2)])
    return {f"step {step}": values[theirs.block(2)][step] for step in (0, 2, 3)}


@program("gpt2", "llama", rename=BOTH, differs=ONCE)
def a_block_of_steps_saves_lists(model: Any, api: Any) -> Values:
    with model.generate(STORY, max_new_tokens=N) as tracer:
        with tracer.iter[1:3]:
            hidden = model.blocks[2].output[0].save()
            norms = hidden_norm(model.blocks[2].output[0]).save()
    return {"hidden": hidden, "norms": norms}


def hidden_norm(h: Tensor) -> Tensor:
    """The length of the vector at every position."""
    return h.norm(dim=-1)


@a_block_of_steps_saves_lists.expected
def _(theirs: Theirs) -> Values:
    _, values = theirs.generate(STORY, N, read=[theirs.block(2)])
    hidden = values[theirs.block(2)][1:3]
    return {"hidden": hidden, "norms": [hidden_norm(h) for h in hidden]}


@program("gpt2")
def edit_one_step_in_a_block(model: Any, api: Any) -> Values:
    with model.generate(STORY, max_new_tokens=N) as tracer:
        with tracer.iter[1]:
            model.transformer.h[1].output[0][:] = 0
        ids = tracer.result.save()
    return {"ids": ids}


@edit_one_step_in_a_block.expected
def _(theirs: Theirs) -> Values:
    return {"ids": theirs.generate(STORY, N, edits={theirs.block(1): torch.zeros_like}, steps=[1])[0]}


@program("gpt2", "llama", rename=BOTH, differs=NO_NEXT)
def step_by_step(model: Any, api: Any) -> Values:
    with model.generate(STORY, max_new_tokens=3) as tracer:
        first = model.blocks[-1].output[0].save()
        tracer.next()
        model.blocks[1].output[0][:] = 0
        second = model.blocks[-1].output[0].save()
        tracer.next()
        third = model.blocks[-1].output[0].save()
        ids = tracer.result.save()
    return {"steps": [first, second, third], "ids": ids}


@step_by_step.expected
def _(theirs: Theirs) -> Values:
    place, edits = theirs.block(theirs.n_layers - 1), {theirs.block(1): torch.zeros_like}
    ids, values = theirs.generate(STORY, 3, read=[place], edits=edits, steps=[1])
    return {"steps": values[place], "ids": ids}


@program("gpt2", differs=NO_NEXT)
def step_by_step_by_module(model: Any, api: Any) -> Values:
    with model.generate(STORY, max_new_tokens=3):
        first = model.transformer.h[-1].output[0].save()
        second = model.transformer.h[-1].next().output[0].save()
        third = model.transformer.h[-1].next().output[0].save()
    return {"steps": [first, second, third]}


@step_by_step_by_module.expected
def _(theirs: Theirs) -> Values:
    place = theirs.block(theirs.n_layers - 1)
    return {"steps": theirs.generate(STORY, 3, read=[place])[1][place]}


@program("gpt2", "llama", "mistral", rename=BOTH, differs=PADDED)
def generate_in_invokes(model: Any, api: Any) -> Values:
    with model.generate(max_new_tokens=N) as tracer:
        with tracer.invoke(STORY):
            story = tracer.result.save()
        with tracer.invoke(IOI):
            for _ in tracer.iter[:N]:
                model.blocks[1].output[0][:, -1] += SHIFT
            steered = tracer.result.save()
    return {"story": story, "steered": steered}


@generate_in_invokes.expected
def _(theirs: Theirs) -> Values:
    steered, _ = theirs.generate(IOI, N, edits={theirs.block(1): shift_the_last}, steps=range(N))
    return {"story": theirs.generate(STORY, N)[0], "steered": steered}


@program("gpt2", "llama", "mistral")
def the_ids_of_all_invokes(model: Any, api: Any) -> Values:
    with model.generate(max_new_tokens=N) as tracer:
        with tracer.invoke(STORY):
            model.lm_head.output.sum()
        with tracer.invoke(IOI):
            model.lm_head.output.sum()
        with tracer.invoke():
            ids = tracer.result.save()
    return {"new": ids[:, -N:], "end_of_prompts": ids[:, -N - 1]}


@the_ids_of_all_invokes.expected
def _(theirs: Theirs) -> Values:
    ids = torch.cat([theirs.generate(prompt, N)[0][:, -N - 1 :] for prompt in (STORY, IOI)])
    return {"new": ids[:, 1:], "end_of_prompts": ids[:, 0]}


@program("gpt2", "llama")
def generate_for_several_prompts(model: Any, api: Any) -> Values:
    with model.generate([STORY, IOI], max_new_tokens=N) as tracer:
        ids = tracer.result.save()
    return {"new": ids[:, -N:]}


@generate_for_several_prompts.expected
def _(theirs: Theirs) -> Values:
    return {"new": torch.cat([theirs.generate(prompt, N)[0][:, -N:] for prompt in (STORY, IOI)])}


@program("gpt2")
def the_logit_lens_while_it_writes(model: Any, api: Any) -> Values:
    with model.generate(STORY, max_new_tokens=N) as tracer:
        guesses = api.save([])
        for _ in tracer.iter[:N]:
            hidden = model.transformer.h[2].output[0][:, -1]
            guesses.append(model.lm_head(model.transformer.ln_f(hidden)).argmax(dim=-1))
    return {"guesses": torch.cat(guesses)}


@the_logit_lens_while_it_writes.expected
def _(theirs: Theirs) -> Values:
    _, values = theirs.generate(STORY, N, read=[theirs.block(2)])
    head, norm = theirs.model.lm_head, theirs.model.transformer.ln_f
    with torch.no_grad():
        return {"guesses": torch.cat([head(norm(h[:, -1])).argmax(-1) for h in values[theirs.block(2)]])}
