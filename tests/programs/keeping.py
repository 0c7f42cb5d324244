"""What outlives a trace or describes a model: caches, edits, scans, other names, modules that are added."""

from typing import Any

import torch

from programs import Values, program
from programs.changing import sae
from programs.generating import BOTH, STORY, N
from programs.reading import IOI
from reference_values import Theirs


@program("gpt2")
def a_cache_of_some_modules(model: Any, api: Any) -> Values:
    with model.trace(IOI) as tracer:
        cache = tracer.cache(modules=[model.transformer.h[1].mlp, model.lm_head], include_inputs=True)
    mlp = cache["model.transformer.h.1.mlp"]
    return {
        "mlp": mlp.output,
        "into mlp": mlp.input,
        "arguments": mlp.inputs[0][0],
        "logits": cache.lm_head.output,
        "same": cache.model.transformer.h[1].mlp.output,
        "keys": sorted(cache.keys()),
    }


@a_cache_of_some_modules.expected
def _(theirs: Theirs) -> Values:
    seen = theirs.forward(IOI, read=[theirs.block(1, "mlp.output"), theirs.block(1, "mlp.input")])
    mlp, into = seen[theirs.block(1, "mlp.output")], seen[theirs.block(1, "mlp.input")]
    keys = ["model.lm_head", "model.transformer.h.1.mlp"]
    return {"mlp": mlp, "into mlp": into, "arguments": into, "logits": seen.logits, "same": mlp, "keys": keys}


@program("llama", block_output="tensor")
def a_cache_of_everything_after_edits(model: Any, api: Any) -> Values:
    with model.trace(IOI) as tracer:
        cache = tracer.cache()
        model.model.layers[1].mlp.output[:] = 0
    return {
        "zero": cache["model.model.layers.1.mlp"].output,
        "stream": cache.model.model.layers[2].output,
        "attention": cache["model.model.layers.2.self_attn"].output[0],
        "embedding": cache["model.model.embed_tokens"].output,
    }


@a_cache_of_everything_after_edits.expected
def _(theirs: Theirs) -> Values:
    places = {
        "zero": theirs.block(1, "mlp.output"),
        "stream": theirs.block(2),
        "attention": theirs.block(2, "self_attn.output"),
        "embedding": "model.embed_tokens.output",
    }
    seen = theirs.forward(IOI, read=places.values(), edits={places["zero"]: torch.zeros_like})
    return {name: seen[place] for name, place in places.items()}


@program("gpt2", block_output="tensor")
def a_cache_of_every_step(model: Any, api: Any) -> Values:
    with model.generate(STORY, max_new_tokens=N) as tracer:
        cache = tracer.cache(modules=[model.transformer.h[-1]])
    last = cache["model.transformer.h.3"]
    return {"steps": last.output, "n": len(last)}


@a_cache_of_every_step.expected
def _(theirs: Theirs) -> Values:
    return {"steps": theirs.generate(STORY, N, read=[theirs.block(3)])[1][theirs.block(3)], "n": N}


@program("gpt2", "mistral", rename=BOTH, differs="`with model.edit() as ...` binds (tracer, edited)")
def an_edited_copy(model: Any, api: Any) -> Values:
    with model.edit() as edited:
        edited.blocks[1].mlp.output[:] = 0
    with edited.trace(IOI):
        ablated = edited.lm_head.output.save()
    with model.trace(IOI):
        plain = model.lm_head.output.save()
    return {"ablated": ablated, "plain": plain}


@an_edited_copy.expected
def _(theirs: Theirs) -> Values:
    edits = {theirs.block(1, "mlp.output"): torch.zeros_like}
    return {"ablated": theirs.forward(IOI, edits=edits).logits, "plain": theirs.forward(IOI).logits}


@program("gpt2")
def edits_in_place_stack_and_are_cleared(model: Any, api: Any) -> Values:
    with model.edit(inplace=True):
        model.transformer.h[1].mlp.output[:] = 0
    with model.edit(inplace=True):
        model.transformer.h[2].mlp.output[:] = 1
    with model.trace(IOI):
        inside = model.transformer.h[1].mlp.output.save()
        both = model.lm_head.output.save()
    model.clear_edits()
    with model.trace(IOI):
        plain = model.lm_head.output.save()
    return {"inside": inside, "both": both, "plain": plain}


@edits_in_place_stack_and_are_cleared.expected
def _(theirs: Theirs) -> Values:
    edits = {theirs.block(1, "mlp.output"): torch.zeros_like, theirs.block(2, "mlp.output"): torch.ones_like}
    seen = theirs.forward(IOI, edits=edits, read=[theirs.block(1, "mlp.output")])
    inside = seen[theirs.block(1, "mlp.output")]
    return {"inside": inside, "both": seen.logits, "plain": theirs.forward(IOI).logits}


@program("gpt2")
def an_edit_holds_in_generation_at_the_prompt(model: Any, api: Any) -> Values:
    with model.edit(inplace=True):
        model.transformer.h[1].output[0][:] *= 0.3
    with model.generate(STORY, max_new_tokens=N) as tracer:
        ids = tracer.result.save()
    model.clear_edits()
    return {"ids": ids}


@an_edit_holds_in_generation_at_the_prompt.expected
def _(theirs: Theirs) -> Values:
    return {"ids": theirs.generate(STORY, N, edits={theirs.block(1): lambda h: h * 0.3})[0]}


@program("gpt2")
def an_edit_of_every_step(model: Any, api: Any) -> Values:
    with model.edit(inplace=True) as tracer:
        for _ in tracer.iter[:]:
            model.transformer.h[1].output[0][:] *= 0.3
    with model.generate(STORY, max_new_tokens=N) as tracer:
        ids = tracer.result.save()
    model.clear_edits()
    return {"ids": ids}


@an_edit_of_every_step.expected
def _(theirs: Theirs) -> Values:
    return {"ids": theirs.generate(STORY, N, edits={theirs.block(1): lambda h: h * 0.3}, steps=range(N))[0]}


@program("gpt2")
def an_sae_that_is_attached(model: Any, api: Any) -> Values:
    model.transformer.h[1].sae = sae()
    with model.edit(inplace=True):
        acts = model.transformer.h[1].output[0]
        model.transformer.h[1].output[0][:] = model.transformer.h[1].sae(acts, hook=True)
    with torch.no_grad():
        with model.trace(IOI):
            features = model.transformer.h[1].sae.encoder.output.save()
            logits = model.lm_head.output.save()
    return {"features": features, "logits": logits}


@an_sae_that_is_attached.expected
def _(theirs: Theirs) -> Values:
    autoencoder, place = sae(), theirs.block(1)
    with torch.no_grad():
        features = autoencoder.encoder(theirs.forward(IOI, read=[place])[place])
        return {"features": features, "logits": theirs.forward(IOI, edits={place: autoencoder}).logits}


@program("gpt2", "llama", rename=BOTH)
def a_scan_of_shapes(model: Any, api: Any) -> Values:
    with model.scan(IOI):
        width = api.save(model.blocks[0].mlp.output.shape[-1])
        shape = api.save(tuple(model.blocks[2].output[0].shape))
        last = model.lm_head.output[:, -1].save()
    return {"width": width, "shape": shape, "last": tuple(last.shape)}


@a_scan_of_shapes.expected
def _(theirs: Theirs) -> Values:
    seen = theirs.forward(IOI, read=[theirs.block(2)])
    return {"width": 48, "shape": tuple(seen[theirs.block(2)].shape), "last": tuple(seen.logits[:, -1].shape)}


@program("gpt2", rename={"transformer.h": "layers", "mlp": "feed_forward", "transformer": ["body", "backbone"]})
def other_names(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        one = model.layers[1].feed_forward.output.save()
        same = model.transformer.h[1].mlp.output.save()
        two = model.body.h[2].output[0].save()
        again = model.backbone.h[2].output[0].save()
    return {"one": one, "same": same, "two": two, "again": again}


@other_names.expected
def _(theirs: Theirs) -> Values:
    seen = theirs.forward(IOI, read=[theirs.block(1, "mlp.output"), theirs.block(2)])
    one, two = seen[theirs.block(1, "mlp.output")], seen[theirs.block(2)]
    return {"one": one, "same": one, "two": two, "again": two}


@program("gpt2", "llama", rename={"attn": "attention", "self_attn": "attention", **BOTH})
def one_program_for_every_family(model: Any, api: Any) -> Values:
    outs = []
    with model.trace(IOI):
        for block in model.blocks:
            outs.append(block.attention.output[0][:, -1].save())
    return {"outs": torch.stack(outs)}


@one_program_for_every_family.expected
def _(theirs: Theirs) -> Values:
    places = [theirs.block(i, "attn.output" if theirs.family == "gpt2" else "self_attn.output") for i in range(4)]
    seen = theirs.forward(IOI, read=places)
    return {"outs": torch.stack([seen[place][:, -1] for place in places])}


@program("gpt2", "llama")
def the_names_of_all_modules(model: Any, api: Any) -> Values:
    paths = [path for path, module in model.named_modules()]
    mlps = [module.path for module in model.modules(include_fn=lambda module: module.path.endswith(".mlp"))]
    return {"paths": sorted(path for path in paths if "generator" not in path), "mlps": sorted(mlps)}


@the_names_of_all_modules.expected
def _(theirs: Theirs) -> Values:
    paths = [name for name, _ in theirs.model.named_modules()]  # nnsight puts "model." before them
    return {"paths": sorted(paths), "mlps": sorted(path for path in paths if path.endswith(".mlp"))}
