"""nnsight's side: a trace that saves the middle layer, of one prompt or of many, and generation."""

from functools import cache

import torch
from answer import NEW, serve
from nnsight import LanguageModel


@cache
def model_of(folder):
    return LanguageModel(folder, dispatch=True)


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
    model = model_of(folder)
    blocks = model.transformer.h if model.config.model_type == "gpt2" else model.model.layers
    return blocks[model.config.num_hidden_layers // 2 - 1]


def generate(folder, tokens):
    model = model_of(folder)
    settings = {"do_sample": False, "min_new_tokens": NEW, "max_new_tokens": NEW, "pad_token_id": 0}

    def work():
        with torch.no_grad(), model.generate(tokens, **settings) as tracer:
            result = tracer.result.save()
        return result

    return work


serve({"trace": trace, "stopped trace": stopped_trace, "invokes": invokes, "generate": generate})
