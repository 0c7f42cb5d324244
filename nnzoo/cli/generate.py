"""`nnzoo generate`: continue a text."""

import sys
from argparse import Namespace
from typing import Any

from nnzoo import LanguageModel


def run(options: Namespace) -> int:
    """Print what a model adds to a prompt: the most likely tokens, or sampled ones.

    >>> run(Namespace(model="nnzoo/tiny-gpt2", prompt="The capital of France is", max_new_tokens=1))
     Paris
    0
    """
    prompt = _from_stdin() if options.prompt == "-" else utf8(options.prompt)
    if not prompt:
        raise ValueError("the prompt is empty: give a text to continue, or - with one on standard input")
    model = LanguageModel(options.model)
    tokens = model.prepare(prompt).tokens
    generated = model.generate(prompt, max_new_tokens=options.max_new_tokens, **decoding(options))
    whole, start = (model.tokenizer.decode(ids[0], skip_special_tokens=True) for ids in (generated, tokens))
    sys.stdout.write(whole.removeprefix(start) + "\n")  # decoded whole: some tokenizers drop a leading space
    return 0


def decoding(options: Namespace) -> dict[str, Any]:
    """How tokens are chosen: greedily, unless sampling or an option of it is asked for.

    >>> decoding(Namespace(sample=False, temperature=0.7))
    {'temperature': 0.7, 'do_sample': True}
    """
    given: dict[str, Any] = {name: value for name, value in vars(options).items() if value is not None}
    sampling: dict[str, Any] = {
        name: given[name] for name in ("temperature", "top_k", "top_p", "seed") if name in given
    }
    stops = {"stop_strings": given["stop"]} if "stop" in given else {}
    return {**sampling, **stops, "do_sample": bool(sampling) or given.get("sample", False)}


def _from_stdin() -> str:
    if sys.stdin is None:  # the shell closed it: <&-
        raise ValueError("standard input is closed, and - reads the prompt from it: give the text instead")
    try:
        return utf8(sys.stdin.read().rstrip("\n"))
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt on standard input is not {error.encoding}: {error.reason}") from error


def utf8(prompt: str) -> str:
    """The prompt as it is; ValueError where bytes that are no UTF-8 came in as half characters, or as surrogates.

    >>> utf8("caf\u00e9")
    'caf\u00e9'
    """
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        wrong = ascii(prompt[error.start : error.end])
        raise ValueError(f"the prompt is not UTF-8: {wrong} at character {error.start} is no character") from error
    return prompt
