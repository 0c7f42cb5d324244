"""Changing one prompt's pass: ablation, steering, replacement, skipping, and modules of one's own."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from programs import Values, program
from programs.reading import IOI
from reference_values import Theirs


@program("gpt2")
def zero_an_mlp(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        before = model.transformer.h[2].mlp.output.clone().save()
        model.transformer.h[2].mlp.output[:] = 0
        after = model.transformer.h[2].mlp.output.save()
        logits = model.lm_head.output.save()
    return {"before": before, "after": after, "logits": logits}


@zero_an_mlp.expected
def _(theirs: Theirs) -> Values:
    place = theirs.block(2, "mlp.output")
    before = theirs.forward(IOI, read=[place])[place]
    logits = theirs.forward(IOI, edits={place: torch.zeros_like}).logits
    return {"before": before, "after": torch.zeros_like(before), "logits": logits}


@program("llama", "mistral")
def mean_ablate_an_mlp(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        mlp = model.model.layers[1].mlp
        mlp.output[:] = mlp.output.mean(dim=1, keepdim=True)
        logits = model.lm_head.output.save()
    return {"logits": logits}


@mean_ablate_an_mlp.expected
def _(theirs: Theirs) -> Values:
    edits = {theirs.block(1, "mlp.output"): lambda h: h.mean(dim=1, keepdim=True).expand_as(h)}
    return {"logits": theirs.forward(IOI, edits=edits).logits}


def without_head(z: Tensor, head: int) -> Tensor:
    z[:, :, head * 12 : (head + 1) * 12] = 0
    return z


@program("gpt2")
def ablate_a_head_by_columns(model: Any, api: Any) -> Values:
    head, d_head = 2, 12
    with model.trace(IOI):
        model.transformer.h[1].attn.c_proj.input[:, :, head * d_head : (head + 1) * d_head] = 0
        logits = model.lm_head.output.save()
    return {"logits": logits}


@ablate_a_head_by_columns.expected
def _(theirs: Theirs) -> Values:
    edits = {theirs.block(1, "attn.c_proj.input"): lambda z: without_head(z, 2)}
    return {"logits": theirs.forward(IOI, edits=edits).logits}


@program("gpt2")
def ablate_a_head_in_an_einops_view(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        z = rearrange(model.transformer.h[1].attn.c_proj.input, "b p (h d) -> b p h d", h=4)
        z[:, :, 3] = 0
        logits = model.lm_head.output.save()
    return {"logits": logits}


@ablate_a_head_in_an_einops_view.expected
def _(theirs: Theirs) -> Values:
    edits = {theirs.block(1, "attn.c_proj.input"): lambda z: without_head(z, 3)}
    return {"logits": theirs.forward(IOI, edits=edits).logits}


@program("llama", "mistral")
def ablate_heads_and_put_them_back(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        o_proj = model.model.layers[1].self_attn.o_proj
        z = rearrange(o_proj.input, "b p (h d) -> b p h d", h=4).clone()
        z[:, :, [0, 3]] = 0
        o_proj.input = rearrange(z, "b p h d -> b p (h d)")
        logits = model.lm_head.output.save()
    return {"logits": logits}


@ablate_heads_and_put_them_back.expected
def _(theirs: Theirs) -> Values:
    edits = {theirs.block(1, "self_attn.o_proj.input"): lambda z: without_head(without_head(z, 0), 3)}
    return {"logits": theirs.forward(IOI, edits=edits).logits}


@program("gpt2")
def steer_by_a_difference(model: Any, api: Any) -> Values:
    with model.trace("love"):
        love = model.transformer.h[1].output[0][:, -1].save()
    with model.trace("hate"):
        hate = model.transformer.h[1].output[0][:, -1].save()
    with model.trace(IOI):
        model.transformer.h[1].output[0][:] += 1.5 * (love - hate)
        logits = model.lm_head.output[:, -1].save()
    return {"logits": logits}


@steer_by_a_difference.expected
def _(theirs: Theirs) -> Values:
    place = theirs.block(1)
    love, hate = (theirs.forward(word, read=[place])[place][:, -1] for word in ("love", "hate"))
    logits = theirs.forward(IOI, edits={place: lambda h: h + 1.5 * (love - hate)}).logits
    return {"logits": logits[:, -1]}


@program("gpt2")
def replace_the_tuple(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        hidden = model.transformer.h[1].output[0]
        model.transformer.h[1].output = (hidden * 0.5 + 1,)
        logits = model.lm_head.output.save()
    return {"logits": logits}


@replace_the_tuple.expected
def _(theirs: Theirs) -> Values:
    return {"logits": theirs.forward(IOI, edits={theirs.block(1): lambda h: h * 0.5 + 1}).logits}


@program("gpt2", block_output="tensor")
def replace_the_tensor(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        model.transformer.h[1].output = model.transformer.h[1].output * 0.5 + 1
        model.transformer.h[2].output[:, -1, :] *= 2
        logits = model.lm_head.output.save()
    return {"logits": logits}


def last_twice(h: Tensor) -> Tensor:
    h[:, -1] *= 2
    return h


@replace_the_tensor.expected
def _(theirs: Theirs) -> Values:
    edits = {theirs.block(1): lambda h: h * 0.5 + 1, theirs.block(2): last_twice}
    return {"logits": theirs.forward(IOI, edits=edits).logits}


@program("gpt2")
def replace_attention_and_keep_its_pattern(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        out, pattern = model.transformer.h[1].attn.output
        model.transformer.h[1].attn.output = (out * 0, pattern)
        logits = model.lm_head.output.save()
    return {"logits": logits}


@replace_attention_and_keep_its_pattern.expected
def _(theirs: Theirs) -> Values:
    return {"logits": theirs.forward(IOI, edits={theirs.block(1, "attn.output"): torch.zeros_like}).logits}


@program("gpt2")
def noise_on_the_embeddings(model: Any, api: Any) -> Values:
    noise = torch.randn(1, 14, 48, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with model.trace(IOI):
        model.transformer.wte.output += noise
        model.transformer.h[0].input[:, 0] *= 2
        logits = model.lm_head.output.save()
    return {"logits": logits}


@noise_on_the_embeddings.expected
def _(theirs: Theirs) -> Values:
    noise = torch.randn(1, 14, 48, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def first_twice(h: Tensor) -> Tensor:
        h[:, 0] *= 2
        return h

    edits = {"transformer.wte.output": lambda e: e + noise, "transformer.h.0.input": first_twice}
    return {"logits": theirs.forward(IOI, edits=edits).logits}


@program("gpt2", block_output="tensor")
def skip_a_block(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        model.transformer.h[1].skip(model.transformer.h[1].input)
        logits = model.lm_head.output.save()
    return {"logits": logits}


@skip_a_block.expected
def _(theirs: Theirs) -> Values:
    place = theirs.block(1, "input")
    stream = theirs.forward(IOI, read=[place])[place]
    return {"logits": theirs.forward(IOI, edits={theirs.block(1): lambda h: stream}).logits}


@program("gpt2", differs="blocks give bare tensors, as in today's transformers")
def skip_a_block_with_a_tuple(model: Any, api: Any) -> Values:
    with model.trace(IOI):
        hidden = model.transformer.h[0].output[0]
        model.transformer.h[1].skip((hidden,))
        model.transformer.h[2].skip((hidden,))
        logits = model.lm_head.output.save()
    return {"logits": logits}


@skip_a_block_with_a_tuple.expected
def _(theirs: Theirs) -> Values:
    hidden = theirs.forward(IOI, read=[theirs.block(0)])[theirs.block(0)]
    return {"logits": theirs.forward(IOI, edits={theirs.block(2): lambda h: hidden}).logits}


class SAE(torch.nn.Module):
    """A sparse autoencoder, as large as it need be."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.encoder = torch.nn.Linear(d_model, d_hidden)
        self.decoder = torch.nn.Linear(d_hidden, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.relu(self.encoder(x)))


def sae() -> SAE:
    """The same one in every program."""
    module = SAE(48, 100).double()
    generator = torch.Generator().manual_seed(7)
    for parameter in module.parameters():
        torch.nn.init.uniform_(parameter, -0.2, 0.2, generator=generator)
    return module


@program("llama", "mistral")
def skip_an_mlp_for_a_transcoder(model: Any, api: Any) -> Values:
    transcoder = sae()
    with model.trace(IOI):
        mlp = model.model.layers[2].mlp
        mlp.skip(transcoder(mlp.input))
        out = mlp.output.save()
        logits = model.lm_head.output.save()
    return {"out": out.detach(), "logits": logits.detach()}


@skip_an_mlp_for_a_transcoder.expected
def _(theirs: Theirs) -> Values:
    place = theirs.block(2, "mlp.input")
    with torch.no_grad():
        out = sae()(theirs.forward(IOI, read=[place])[place])
    return {"out": out, "logits": theirs.forward(IOI, edits={theirs.block(2, "mlp.output"): lambda h: out}).logits}


@program("gpt2")
def replace_a_stream_by_an_sae(model: Any, api: Any) -> Values:
    autoencoder = sae()
    with torch.no_grad():
        with model.trace(IOI):
            hidden = model.transformer.h[1].output[0]
            features = torch.relu(autoencoder.encoder(hidden)).save()
            model.transformer.h[1].output[0][:] = autoencoder(hidden)
            logits = model.lm_head.output.save()
    return {"features": features, "logits": logits}


@replace_a_stream_by_an_sae.expected
def _(theirs: Theirs) -> Values:
    autoencoder, place = sae(), theirs.block(1)
    with torch.no_grad():
        hidden = theirs.forward(IOI, read=[place])[place]
        features = torch.relu(autoencoder.encoder(hidden))
        logits = theirs.forward(IOI, edits={place: autoencoder}).logits
    return {"features": features, "logits": logits}
