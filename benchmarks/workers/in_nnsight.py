"""nnsight's side: a trace that saves the middle layer, of one prompt or of many; generation; patching in a loop."""

from functools import cache

import torch
from answer import DEVICE, DTYPE, NEW, serve
from nnsight import LanguageModel


@cache
def model_of(folder):
    return LanguageModel(folder, dispatch=True, dtype=DTYPE).to(DEVICE)


def trace(folder, tokens):
    model, block = model_of(folder), middle(folder)

    def work():
        with torch.no_grad(), model.trace(tokens):
            hidden = block.output.save()
        return hidden

    return work


def stopped_trace(folder, tokens):
    model, block = model_of(folder), middle(folder)

    def work():
        with torch.no_grad(), model.trace(tokens) as tracer:
            hidden = block.output.save()
            tracer.stop()
        return hidden

    return work


def invokes(folder, tokens):
    model, block = model_of(folder), middle(folder)

    def work():
        saved = []
        with torch.no_grad(), model.trace() as tracer:
            for row in tokens:
                with tracer.invoke(row[None]):
                    saved.append(block.output.save())
        return saved

    return work


def middle(folder):
    """The block at mid-depth."""
    return blocks_of(folder)[model_of(folder).config.num_hidden_layers // 2 - 1]


def blocks_of(folder):
    model = model_of(folder)
    return model.transformer.h if model.config.model_type == "gpt2" else model.model.layers


def patching(folder, tokens):
    model, blocks, clean = model_of(folder), blocks_of(folder), tokens.roll(1)

    def work():
        streams, found = [], []
        with torch.no_grad(), model.trace(clean):
            for block in blocks:
                streams.append(block.input.save())
        for block, stream in zip(blocks, streams, strict=True):
            for pos in range(tokens.shape[1]):
                with torch.no_grad(), model.trace(tokens):
                    block.input[:, pos] = stream[:, pos]
                    logits = model.output.logits
                    preference = (logits[:, -1, 1] - logits[:, -1, 2]).mean().save()
                found.append(preference)
        return torch.stack(found)

    return work


def patching_of_heads(folder, tokens):
    model, blocks, clean = model_of(folder), blocks_of(folder), tokens.roll(1)
    mixed = [block.attn.c_proj if hasattr(block, "attn") else block.self_attn.o_proj for block in blocks]
    n_heads = model.config.num_attention_heads
    width = model.config.hidden_size // n_heads

    def work():
        values, found = [], []
        with torch.no_grad(), model.trace(clean):
            for one in mixed:
                values.append(one.input.save())
        for one, value in zip(mixed, values, strict=True):
            for head in range(n_heads):
                part = slice(head * width, (head + 1) * width)
                with torch.no_grad(), model.trace(tokens):
                    one.input[:, :, part] = value[:, :, part]
                    logits = model.output.logits
                    preference = (logits[:, -1, 1] - logits[:, -1, 2]).mean().save()
                found.append(preference)
        return torch.stack(found)

    return work


def generate(folder, tokens):
    model = model_of(folder)
    settings = {"do_sample": False, "min_new_tokens": NEW, "max_new_tokens": NEW, "pad_token_id": 0}

    def work():
        with torch.no_grad(), model.generate(tokens, **settings) as tracer:
            result = tracer.result.save()
        return result

    return work


serve(
    {
        "trace": trace,
        "stopped trace": stopped_trace,
        "invokes": invokes,
        "generate": generate,
        "patching": patching,
        "patching of heads": patching_of_heads,
    }
)
