"""Reading: streams, lenses, patterns, heads, inputs, and the ways to name a module or a prompt."""

from typing import Any

import torch
from einops import einsum, rearrange

from programs import Values, program
from reference_values import Theirs

IOI = "When Mary and John went to the store, John gave a drink to"


@program("gpt2")
def residual_streams(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        streams = [model.transformer.h[layer].output[0].save() for layer in range(len(model.transformer.h))]
        streams = api.save(streams)
    return {"streams": torch.stack(streams)}


@residual_streams.expected
def _(theirs: Theirs) -> Values:
    places = [theirs.block(layer) for layer in range(theirs.n_layers)]
    seen = theirs.forward(IOI, read=places)
    return {"streams": torch.stack([seen[place] for place in places])}


@program("llama", "mistral", block_output="tensor")
def residual_streams_of_bare_tensors(model: Any, api: Any) -> Values:
    hidden = {}
    with model.trace(IOI):
        for i, layer in enumerate(model.model.layers):
            hidden[i] = layer.output[:, -1, :].save()
    return {f"last position after {i}": value for i, value in hidden.items()}


@residual_streams_of_bare_tensors.expected
def _(theirs: Theirs) -> Values:
    seen = theirs.forward(IOI, read=[theirs.block(i) for i in range(theirs.n_layers)])
    return {f"last position after {i}": seen[theirs.block(i)][:, -1] for i in range(theirs.n_layers)}


@program("gpt2")
def logit_lens(model: Any, api: Any) -> Values:
    probabilities, tokens = [], []
    with model.trace(IOI):
        for layer in model.transformer.h:
            logits = model.lm_head(model.transformer.ln_f(layer.output[0]))
            best = logits.softmax(dim=-1).max(dim=-1)
            probabilities.append(best.values.save())
            tokens.append(best.indices.save())
        final = model.lm_head.output.argmax(dim=-1).save()
    words = [model.tokenizer.decode(t[0, -1]) for t in tokens]
    return {"probabilities": torch.stack(probabilities), "tokens": torch.stack(tokens), "words": words, "final": final}


@logit_lens.expected
def _(theirs: Theirs) -> Values:
    seen = theirs.forward(IOI, read=[theirs.block(i) for i in range(theirs.n_layers)])
    head, norm = theirs.model.lm_head, theirs.model.transformer.ln_f
    with torch.no_grad():
        best = [head(norm(seen[theirs.block(i)])).softmax(-1).max(-1) for i in range(theirs.n_layers)]
    return {
        "probabilities": torch.stack([one.values for one in best]),
        "tokens": torch.stack([one.indices for one in best]),
        "words": [theirs.tokenizer.decode(one.indices[0, -1]) for one in best],
        "final": seen.logits.argmax(-1),
    }


@program("llama", "mistral", block_output="tensor")
def logit_lens_by_modules(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        guesses = api.save([])
        for layer in model.model.layers:
            guesses.append(model.lm_head(model.model.norm(layer.output[:, -1])).log_softmax(-1).topk(3).indices)
    return {"guesses": torch.cat(guesses)}


@logit_lens_by_modules.expected
def _(theirs: Theirs) -> Values:
    seen = theirs.forward(IOI, read=[theirs.block(i) for i in range(theirs.n_layers)])
    with torch.no_grad():
        lens = [
            theirs.model.lm_head(theirs.model.model.norm(seen[theirs.block(i)][:, -1])) for i in range(theirs.n_layers)
        ]
    return {"guesses": torch.cat([one.topk(3).indices for one in lens])}


@program("gpt2")
def attention_patterns(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        patterns = [layer.attn.output[1].save() for layer in model.transformer.h]
        patterns = api.save(patterns)
    to_first = torch.stack([pattern[0, :, -1, 0] for pattern in patterns])
    return {"patterns": torch.stack(patterns), "last to first, layer by head": to_first}


@attention_patterns.expected
def _(theirs: Theirs) -> Values:
    patterns = torch.stack(theirs.patterns(IOI))
    return {"patterns": patterns, "last to first, layer by head": patterns[:, 0, :, -1, 0]}


@program("gpt2")
def direct_logit_attribution_of_heads(model: Any, api: Any) -> Values:
    """What each head adds to the stream at the last position, by c_proj's rows that belong to it."""
    n_heads = 4
    with model.trace(IOI):
        z = rearrange(model.transformer.h[2].attn.c_proj.input, "b p (h d) -> b p h d", h=n_heads)
        w_o = rearrange(model.transformer.h[2].attn.c_proj.weight, "(h d) m -> h d m", h=n_heads)
        heads = einsum(z[:, -1], w_o, "b h d, h d m -> b h m").save()
    return {"heads": heads}


@direct_logit_attribution_of_heads.expected
def _(theirs: Theirs) -> Values:
    place = "transformer.h.2.attn.c_proj.input"
    z = theirs.forward(IOI, read=[place])[place][:, -1].view(1, 4, 12)
    weight = theirs.model.transformer.h[2].attn.c_proj.weight.detach().view(4, 12, 48)
    return {"heads": torch.einsum("bhd,hdm->bhm", z, weight)}


@program("gpt2")
def inputs_of_modules(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        tokens = model.transformer.wte.input.save()
        stream = model.transformer.h[1].input.save()
        normed = model.transformer.h[1].attn.inputs[0][0].save()
        into_mlp = model.transformer.h[1].mlp.c_fc.input.save()
        hidden = model.transformer.h[1].mlp.c_proj.input.save()
    return {"tokens": tokens, "stream": stream, "normed": normed, "into_mlp": into_mlp, "hidden": hidden}


@inputs_of_modules.expected
def _(theirs: Theirs) -> Values:
    places = {
        "tokens": "transformer.wte.input",
        "stream": "transformer.h.1.input",
        "normed": "transformer.h.1.attn.input",
        "into_mlp": "transformer.h.1.mlp.c_fc.input",
        "hidden": "transformer.h.1.mlp.c_proj.input",
    }
    seen = theirs.forward(IOI, read=places.values())
    return {name: seen[place] for name, place in places.items()}


@program("llama", "mistral")
def projections(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        layer = model.model.layers[2]
        normed = layer.input_layernorm.output.save()
        queries = layer.self_attn.q_proj.output.save()
        values = layer.self_attn.v_proj.output.save()
        z = layer.self_attn.o_proj.input.save()
        gate = layer.mlp.act_fn.output.save()
        hidden = layer.mlp.down_proj.input.save()
    return {"normed": normed, "queries": queries, "values": values, "z": z, "gate": gate, "hidden": hidden}


@projections.expected
def _(theirs: Theirs) -> Values:
    ends = {
        "normed": "input_layernorm.output",
        "queries": "self_attn.q_proj.output",
        "values": "self_attn.v_proj.output",
        "z": "self_attn.o_proj.input",
        "gate": "mlp.act_fn.output",
        "hidden": "mlp.down_proj.input",
    }
    seen = theirs.forward(IOI, read=[theirs.block(2, end) for end in ends.values()])
    return {name: seen[theirs.block(2, end)] for name, end in ends.items()}


@program("gpt2", "llama", "mistral")
def logits_by_their_hugging_face_name(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        logits = model.output.logits.save()
        last = model.output.logits[:, -1].argmax(dim=-1).save()
    return {"logits": logits, "word": model.tokenizer.decode(last[0])}


@logits_by_their_hugging_face_name.expected
def _(theirs: Theirs) -> Values:
    logits = theirs.forward(IOI).logits
    return {"logits": logits, "word": theirs.tokenizer.decode(logits[0, -1].argmax())}


@program("gpt2", "llama", "mistral")
def the_model_by_its_keywords(model: Any, api: Any) -> Values:
    """What goes into the model and comes out of it, by the names that transformers gives."""
    with model.trace(IOI):
        _, named = model.inputs
        ids = named["input_ids"].save()
        last = model.output["logits"][:, -1].save()
    return {"ids": ids, "last": last}


@the_model_by_its_keywords.expected
def _(theirs: Theirs) -> Values:
    return {"ids": theirs.ids(IOI), "last": theirs.forward(IOI).logits[:, -1]}


@program("gpt2", "llama")
def logits_asked_after_the_trace(model: Any, api: Any) -> Values:
    with model.trace(IOI) as tracer:
        out = model.output.save()
        result = tracer.result.save()
    return {"out": out.logits, "result": result.logits}


@logits_asked_after_the_trace.expected
def _(theirs: Theirs) -> Values:
    logits = theirs.forward(IOI).logits
    return {"out": logits, "result": logits}


@program("gpt2", differs=".value is gone")
def values_by_value(model: Any, api: Any) -> Values:
    """nnsight 0.2 and 0.3: what was saved is asked for its .value after the trace."""
    with model.trace(IOI):
        hidden = model.transformer.h[1].output[0].save()
        logits = model.lm_head.output.save()
    return {"hidden": hidden.value, "logits": logits.value}


@values_by_value.expected
def _(theirs: Theirs) -> Values:
    seen = theirs.forward(IOI, read=[theirs.block(1)])
    return {"hidden": seen[theirs.block(1)], "logits": seen.logits}


@program("gpt2")
def modules_by_path(model: Any, api: Any) -> Values:
    mlp = model.get("transformer.h.2.mlp")
    with model.trace(IOI):
        value = mlp.output.save()
        same = model.get("transformer.h.2.mlp.output").save()
    return {"value": value, "same": same}


@modules_by_path.expected
def _(theirs: Theirs) -> Values:
    value = theirs.forward(IOI, read=["transformer.h.2.mlp.output"])["transformer.h.2.mlp.output"]
    return {"value": value, "same": value}


@program("gpt2", "llama")
def prompts_of_every_kind(model: Any, api: Any) -> Values:
    encoded = model.tokenizer(IOI, return_tensors="pt")
    kinds = {"tensor": encoded["input_ids"], "row": encoded["input_ids"][0], "list": encoded["input_ids"][0].tolist()}
    kinds |= {"encoding": encoded, "dict": dict(encoded)}
    logits = {}
    for kind, prompt in kinds.items():
        with model.trace(prompt):
            logits[kind] = model.lm_head.output.save()
    return logits


@prompts_of_every_kind.expected
def _(theirs: Theirs) -> Values:
    return dict.fromkeys(("tensor", "row", "list", "encoding", "dict"), theirs.forward(IOI).logits)


@program("gpt2", "llama", "mistral")
def a_list_of_prompts(model: Any, api: Any) -> Values:
    with model.trace([IOI, "The cat sat"]):
        last = model.lm_head.output[:, -1].save()
        shape = api.save(model.lm_head.output.shape[:2])
    return {"last": last, "shape": list(shape)}


@a_list_of_prompts.expected
def _(theirs: Theirs) -> Values:
    logits = theirs.forward([IOI, "The cat sat"]).logits
    return {"last": logits[:, -1], "shape": list(logits.shape[:2])}


@program("gpt2")
def look_and_branch(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        hidden = model.transformer.h[1].output[0]
        if hidden.norm() > 1:
            model.transformer.h[2].mlp.output[:] = 0
        norm = api.save(hidden.norm().item())
        logits = model.lm_head.output.save()
    return {"norm": norm, "logits": logits}


@look_and_branch.expected
def _(theirs: Theirs) -> Values:
    seen = theirs.forward(IOI, read=[theirs.block(1)], edits={theirs.block(2, "mlp.output"): torch.zeros_like})
    return {"norm": seen[theirs.block(1)].norm().item(), "logits": seen.logits}


@program("gpt2")
def stop_early(model: Any, api: Any) -> Values:
    with model.trace(IOI) as tracer:
        hidden = model.transformer.h[1].output[0].save()
        tracer.stop()
    return {"hidden": hidden}


@stop_early.expected
def _(theirs: Theirs) -> Values:
    return {"hidden": theirs.forward(IOI, read=[theirs.block(1)])[theirs.block(1)]}


@program("gpt2", differs="reads go in the order of the forward pass: OutOfOrderError")
def layers_in_any_order(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        logits = model.lm_head.output.save()
        late = model.transformer.h[3].output[0].save()
        early = model.transformer.h[0].output[0].save()
        model.transformer.h[1].mlp.output[:] = 0
    return {"logits": logits, "late": late, "early": early}


@layers_in_any_order.expected
def _(theirs: Theirs) -> Values:
    edits = {theirs.block(1, "mlp.output"): torch.zeros_like}
    seen = theirs.forward(IOI, read=[theirs.block(3), theirs.block(0)], edits=edits)
    return {"logits": seen.logits, "late": seen[theirs.block(3)], "early": seen[theirs.block(0)]}


@program("gpt2", differs="values that were not saved are gone after the block")
def values_that_nobody_saved(model: Any, api: Any) -> Values:
    kept = []
    with model.trace(IOI):
        for layer in model.transformer.h:
            kept.append(layer.output[0][:, -1].norm())
        logits = model.output
    return {"norms": torch.stack(kept), "logits": logits}


@values_that_nobody_saved.expected
def _(theirs: Theirs) -> Values:
    seen = theirs.forward(IOI, read=[theirs.block(i) for i in range(theirs.n_layers)])
    norms = [seen[theirs.block(i)][:, -1].norm() for i in range(theirs.n_layers)]
    return {"norms": torch.stack(norms), "logits": seen.logits}


@program("gpt2", "llama")
def a_call_without_a_body(model: Any, api: Any) -> Values:
    return {"logits": model.trace(IOI, trace=False).logits}


@a_call_without_a_body.expected
def _(theirs: Theirs) -> Values:
    return {"logits": theirs.forward(IOI).logits}
