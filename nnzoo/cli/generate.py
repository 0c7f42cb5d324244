"""`nnzoo generate`: continue a text."""

import sys
from argparse import Namespace

from nnzoo import LanguageModel


def run(options: Namespace) -> int:
    """Print what greedy decoding adds to a prompt.

    >>> run(Namespace(model="nnzoo/tiny-gpt2", prompt="The capital of France is", max_new_tokens=1))
     Paris
    0
    """
    prompt = sys.stdin.read().rstrip("\n") if options.prompt == "-" else options.prompt
    if not prompt:
        raise ValueError("the prompt is empty: give a text to continue, or - with one on standard input")
    model = LanguageModel(options.model)
    tokens, _ = model.prepare(prompt)
    generated = model.generate(prompt, max_new_tokens=options.max_new_tokens)
    whole, start = (model.tokenizer.decode(ids[0], skip_special_tokens=True) for ids in (generated, tokens))
    sys.stdout.write(whole.removeprefix(start) + "\n")  # decoded whole: some tokenizers drop a leading space
    return 0
