"""Several prompts: patching from one run into another, in traces and in invokes, and what an invoke sees."""

from typing import Any

import torch
from torch import Tensor

from programs import Values, program
from programs.reading import IOI
from reference_values import Change, Theirs

CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
SHORT = "The cat sat"
LATER_IN_EARLIER = "one pass for all invokes: NameError, or OutOfOrderError with a barrier"
PADDED = "every invoke is padded to the longest prompt of the trace"


def at(position: int, new: Tensor) -> Change:
    """A change that puts a vector at one position."""

    def put(h: Tensor) -> Tensor:
        h[:, position] = new
        return h

    return put


@program("gpt2")
def patch_in_two_traces(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        clean = model.transformer.h[1].output[0][:, 9].save()
    with model.trace(CORRUPT):
        model.transformer.h[1].output[0][:, 9] = clean
        patched = model.lm_head.output[:, -1].save()
    return {"patched": patched}


@patch_in_two_traces.expected
def _(theirs: Theirs) -> Values:
    clean = theirs.forward(IOI, read=[theirs.block(1)])[theirs.block(1)][:, 9]
    return {"patched": theirs.forward(CORRUPT, edits={theirs.block(1): at(9, clean)}).logits[:, -1]}


@program("gpt2", "llama", "mistral", rename={"transformer.h": "blocks", "model.layers": "blocks"})
def patch_across_invokes_with_a_barrier(model: Any, api: Any) -> Values:
    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(IOI):
            clean = model.blocks[1].output[0][:, 9]
            barrier()
        with tracer.invoke(CORRUPT):
            barrier()
            model.blocks[1].output[0][:, 9] = clean
            patched = model.lm_head.output[:, -1].save()
    return {"patched": patched}


@patch_across_invokes_with_a_barrier.expected
def _(theirs: Theirs) -> Values:
    clean = theirs.forward(IOI, read=[theirs.block(1)])[theirs.block(1)][:, 9]
    return {"patched": theirs.forward(CORRUPT, edits={theirs.block(1): at(9, clean)}).logits[:, -1]}


@program("gpt2", "llama", rename={"transformer.h": "blocks", "model.layers": "blocks"}, differs=LATER_IN_EARLIER)
def patch_from_a_later_layer_into_an_earlier_one(model: Any, api: Any) -> Values:
    with model.trace() as tracer:
        with tracer.invoke(IOI):
            clean = model.blocks[3].output[0][:, -1].save()
        with tracer.invoke(CORRUPT):
            model.blocks[0].output[0][:, -1] = clean
            patched = model.lm_head.output.save()
    return {"clean": clean, "patched": patched}


@patch_from_a_later_layer_into_an_earlier_one.expected
def _(theirs: Theirs) -> Values:
    clean = theirs.forward(IOI, read=[theirs.block(3)])[theirs.block(3)][:, -1]
    return {"clean": clean, "patched": theirs.forward(CORRUPT, edits={theirs.block(0): at(-1, clean)}).logits}


@program("gpt2", differs=LATER_IN_EARLIER)
def patch_along_a_chain_of_invokes(model: Any, api: Any) -> Values:
    with model.trace() as tracer:
        with tracer.invoke(IOI):
            first = model.transformer.h[2].output[0][:, -1]
        with tracer.invoke(CORRUPT):
            model.transformer.h[0].output[0][:, -1] += first
            second = model.transformer.h[3].output[0][:, -1]
        with tracer.invoke(SHORT):
            model.transformer.h[1].output[0][:, 0] = second - first
            logits = model.lm_head.output.save()
    return {"logits": logits}


@patch_along_a_chain_of_invokes.expected
def _(theirs: Theirs) -> Values:
    first = theirs.forward(IOI, read=[theirs.block(2)])[theirs.block(2)][:, -1]

    def add_first(h: Tensor) -> Tensor:
        h[:, -1] += first
        return h

    seen = theirs.forward(CORRUPT, read=[theirs.block(3)], edits={theirs.block(0): add_first})
    second = seen[theirs.block(3)][:, -1]
    return {"logits": theirs.forward(SHORT, edits={theirs.block(1): at(0, second - first)}).logits}


@program("gpt2")
def a_map_of_patches_in_one_trace(model: Any, api: Any) -> Values:
    layers, positions = (0, 2), (1, 9, 13)
    with model.trace(IOI):
        clean = [layer.output[0].save() for layer in model.transformer.h]
        clean = api.save(clean)
    with model.trace() as tracer:
        scores = api.save({})
        for layer in layers:
            for position in positions:
                with tracer.invoke(CORRUPT):
                    model.transformer.h[layer].output[0][:, position] = clean[layer][:, position]
                    scores[layer, position] = model.lm_head.output[0, -1]
    return {"scores": torch.stack([scores[layer, position] for layer in layers for position in positions])}


@a_map_of_patches_in_one_trace.expected
def _(theirs: Theirs) -> Values:
    clean = theirs.forward(IOI, read=[theirs.block(i) for i in range(theirs.n_layers)])
    scores = [
        theirs.forward(CORRUPT, edits={theirs.block(i): at(p, clean[theirs.block(i)][:, p])}).logits[0, -1]
        for i in (0, 2)
        for p in (1, 9, 13)
    ]
    return {"scores": torch.stack(scores)}


@program("gpt2")
def swap_the_embeddings(model: Any, api: Any) -> Values:
    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(IOI):
            embeddings = model.transformer.wte.output
            barrier()
            mine = model.lm_head.output.save()
        with tracer.invoke(CORRUPT):
            barrier()
            model.transformer.wte.output = embeddings
            yours = model.lm_head.output.save()
    return {"mine": mine, "yours": yours}


@swap_the_embeddings.expected
def _(theirs: Theirs) -> Values:
    return dict.fromkeys(("mine", "yours"), theirs.forward(IOI).logits)


@program("gpt2", "llama", "mistral", differs=PADDED)
def every_invoke_sees_its_own_tokens(model: Any, api: Any) -> Values:
    with model.trace() as tracer:
        with tracer.invoke(SHORT):
            short = model.lm_head.output.save()
            shape = api.save(tuple(model.lm_head.output.shape[:2]))
        with tracer.invoke(IOI):
            long = model.lm_head.output.save()
        with tracer.invoke([SHORT, CORRUPT]):
            both = model.lm_head.output[:, -1].save()
    return {"short": short, "shape": shape, "long": long, "both": both}


@every_invoke_sees_its_own_tokens.expected
def _(theirs: Theirs) -> Values:
    short, long, both = (theirs.forward(prompt).logits for prompt in (SHORT, IOI, [SHORT, CORRUPT]))
    return {"short": short, "shape": tuple(short.shape[:2]), "long": long, "both": both[:, -1]}


@program("gpt2", "llama", "mistral")
def the_last_position_of_every_invoke(model: Any, api: Any) -> Values:
    with model.trace() as tracer:
        with tracer.invoke(SHORT):
            short = model.lm_head.output[:, -1].save()
        with tracer.invoke(IOI):
            long = model.lm_head.output[:, -1].save()
        with tracer.invoke():
            whole = model.lm_head.output[:, -1].save()
    return {"short": short, "long": long, "whole": whole}


@the_last_position_of_every_invoke.expected
def _(theirs: Theirs) -> Values:
    short, long = (theirs.forward(prompt).logits[:, -1] for prompt in (SHORT, IOI))
    return {"short": short, "long": long, "whole": torch.cat([short, long])}


@program("gpt2")
def edits_stay_in_their_invoke(model: Any, api: Any) -> Values:
    with model.trace() as tracer:
        with tracer.invoke(IOI):
            model.transformer.h[1].mlp.output[:] = 0
            ablated = model.lm_head.output.save()
        with tracer.invoke(IOI):
            plain = model.lm_head.output.save()
        with tracer.invoke(IOI):
            model.transformer.h[1].output[0][:, -1] += model.transformer.h[1].output[0][:, 0]
            shifted = model.lm_head.output.save()
    return {"ablated": ablated, "plain": plain, "shifted": shifted}


@edits_stay_in_their_invoke.expected
def _(theirs: Theirs) -> Values:
    def add_the_first(h: Tensor) -> Tensor:
        h[:, -1] += h[:, 0]
        return h

    return {
        "ablated": theirs.forward(IOI, edits={theirs.block(1, "mlp.output"): torch.zeros_like}).logits,
        "plain": theirs.forward(IOI).logits,
        "shifted": theirs.forward(IOI, edits={theirs.block(1): add_the_first}).logits,
    }


@program("gpt2", "mistral", rename={"transformer.h": "blocks", "model.layers": "blocks"})
def a_session_carries_values(model: Any, api: Any) -> Values:
    with model.session():
        with model.trace(IOI):
            clean = model.blocks[2].output[0]
        with model.trace(CORRUPT):
            model.blocks[1].output[0][:, -1] = clean[:, -1] * 2
            logits = model.lm_head.output.save()
    return {"logits": logits}


@a_session_carries_values.expected
def _(theirs: Theirs) -> Values:
    clean = theirs.forward(IOI, read=[theirs.block(2)])[theirs.block(2)]
    return {"logits": theirs.forward(CORRUPT, edits={theirs.block(1): at(-1, clean[:, -1] * 2)}).logits}


@program("gpt2")
def a_session_with_a_loop(model: Any, api: Any) -> Values:
    with model.session() as session:
        results = api.save([])
        for layer in range(3):
            with model.trace(IOI):
                model.transformer.h[layer].mlp.output[:] = 0
                results.append(model.lm_head.output[0, -1])
    return {"results": torch.stack(results), "a session is there": session is not None}


@a_session_with_a_loop.expected
def _(theirs: Theirs) -> Values:
    edits = [{theirs.block(layer, "mlp.output"): torch.zeros_like} for layer in range(3)]
    results = [theirs.forward(IOI, edits=edit).logits[0, -1] for edit in edits]
    return {"results": torch.stack(results), "a session is there": True}
