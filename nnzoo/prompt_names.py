"""The names and kinds of a prompt's parts: which argument is what, which is refused, and arrays as tensors."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

KEYWORDS = ("input_ids", "attention_mask", "inputs_embeds", "labels", "token_type_ids", "position_ids")
KINDS = (
    "a prompt is a text or a list of texts, ids [pos] or [batch pos] (lists, a tensor, an array), a tokenizer's "
    'output, or messages [{"role": ..., "content": ...}]'
)
_CACHED = "a prompt is read from its first token; the native model goes on from a cache: model._model(ids, cache=...)"
_LAST = "index the logits: model.output[:, -1:] unembeds these positions only"
_DECODER = "these models read one sequence, and no encoder's"
_ENCODE = 'tokenise first: model.trace(model.tokenizer(text, ..., return_tensors="pt"))'
_OF_TEXT = "it tells of the text, and a model has no use for it: leave it out"
_MESSAGES = "a conversation is a list of messages, of one message too: model.trace([message])"
_STEPS = "a trace is of one pass; a generation is one by itself: with model.generate(prompt, max_new_tokens=...)"
# keywords of transformers that are no prompt's: the values at which they change nothing, and what to do for others
ELSEWHERE: dict[str, tuple[tuple[Any, ...], str]] = {
    "use_cache": ((True, False), "it is True or False, and gives the same values either way"),
    "return_dict": ((True,), "a model gives its logits, and everything else at hook points"),
    "output_hidden_states": ((False,), "read the blocks' .output in a trace, or hook_resid_post of each block"),
    "output_attentions": ((False,), "read the attentions' .output[1] in a trace, or attn.hook_pattern of each block"),
    "head_mask": ((), "multiply the heads at attn.hook_z"),
    "prepend_bos": ((), 'write the token into the text, or: model._model("text", prepend_bos=True)'),
    **dict.fromkeys(("logits_to_keep", "num_logits_to_keep"), ((0,), _LAST)),
    **dict.fromkeys(("past_key_values", "cache_position"), ((), _CACHED)),
    **dict.fromkeys(("encoder_hidden_states", "encoder_attention_mask"), ((), _DECODER)),
    **dict.fromkeys(("truncation", "max_length", "padding", "add_special_tokens", "return_tensors"), ((), _ENCODE)),
    **dict.fromkeys(("offset_mapping", "special_tokens_mask"), ((), _OF_TEXT)),
    **dict.fromkeys(("messages", "role", "content"), ((), _MESSAGES)),
    **dict.fromkeys(("max_new_tokens", "do_sample", "temperature", "top_k", "top_p"), ((), _STEPS)),
}
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # torch computes next to nothing with them


def by_name(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a prompt by transformers' names, whether they came by position, in a dict or by keyword."""
    if len(args) > 1:
        raise TypeError(f"one prompt was expected, not {len(args)}; several run as one batch: [prompt, prompt]")
    given = _checked_names(kwargs)
    prompt = plain("a prompt", args[0]) if args and args[0] is not None else None
    if isinstance(prompt, list) and prompt and all(isinstance(one, Mapping) and "role" not in one for one in prompt):
        prompt = _collated(prompt)
    if prompt is None:
        return given
    inside = _checked_names(prompt) if isinstance(prompt, Mapping) else {"input_ids": prompt}
    if twice := inside.keys() & given.keys():
        raise TypeError(f"{' and '.join(sorted(twice))} came twice, in the prompt and by keyword: give one of them")
    return inside | given


def _checked_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is not None, of the names that a prompt has."""
    for name, value in given.items():
        if name in ELSEWHERE:
            harmless, instead = ELSEWHERE[name]
            if value is None or (isinstance(value, (bool, int)) and value in harmless):
                continue
            raise TypeError(f"{name}={value!r:.30} is not taken: {instead}")
        if name not in KEYWORDS:
            near = difflib.get_close_matches(str(name), [*KEYWORDS, *ELSEWHERE], n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(KEYWORDS)}"
            raise TypeError(f"a prompt has no {name!r}; {hint}")
    return {name: plain(name, value) for name, value in given.items() if value is not None and name in KEYWORDS}


def _collated(examples: list[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Several outputs of a tokenizer as one."""
    for i, one in enumerate(examples):
        if one.keys() != examples[0].keys():
            raise ValueError(f"prompt 0 of the list has {sorted(examples[0])}, prompt {i} has {sorted(one)}")
    return {name: [one[name] for one in examples] for name in examples[0]}


def plain(name: str, value: Any) -> Any:
    """Arrays as tensors, arrays of anything but numbers and all other sequences as lists."""
    if isinstance(value, Tensor):
        return value.long() if value.dtype in _UNSIGNED else value
    if isinstance(value, (str, Mapping, list)):
        return value
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return list(value)
    if not hasattr(value, "__array__"):
        raise TypeError(f"{name} was given as {type(value).__name__}: {brief(value)}; {KINDS}")
    array = value.__array__()
    if array.dtype.kind in "iu":
        return torch.from_numpy(array.astype("int64"))
    return torch.tensor(array) if array.dtype.kind in "bf" else plain(name, array.tolist())


def brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."
