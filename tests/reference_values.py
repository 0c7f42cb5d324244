"""What transformers computes, by plain forward hooks: the values that traces are held to. Nothing here knows nnzoo.

A place is a module's path and one of its ends: "transformer.h.5.output", "model.layers.2.mlp.input". Its value is the
first tensor there: of a tuple the first element, of arguments the first.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import speaking

Change = Callable[[Tensor], Tensor]
Prompt = str | list[str] | Tensor


@dataclass
class Seen:
    """One pass: the logits, and the values at the places that were asked for, as the model went on with them."""

    logits: Tensor
    values: dict[str, list[Tensor]]

    def __getitem__(self, place: str) -> Tensor:
        return self.values[place][0]


class Theirs:
    """transformers' model of a family, its hooks, and its greedy generation.

    >>> theirs = Theirs("gpt2", n_layers=2)
    >>> seen = theirs.forward("The cat sat", read=["transformer.h.1.output"])
    >>> seen["transformer.h.1.output"].shape
    torch.Size([1, 3, 48])
    """

    def __init__(self, family: str, n_layers: int = 7, attention: str = "sdpa") -> None:
        self.family = family
        self.tokenizer: PreTrainedTokenizerBase = speaking.tokenizer()
        self.model = _model(family, n_layers, attention)
        self.eager = partial(Theirs, family, n_layers, "eager")  # the model that gives attention patterns
        self.blocks = "transformer.h" if family == "gpt2" else "model.layers"
        self.n_layers: int = self.model.config.num_hidden_layers

    def block(self, layer: int, end: str = "output") -> str:
        """The place of a block's output, or of another end: `block(2, "mlp.output")`."""
        return f"{self.blocks}.{layer}.{end}"

    def ids(self, text: str) -> Tensor:
        """A prompt's token ids [1 pos]."""
        return self.tokenizer(text, return_tensors="pt").input_ids

    def forward(
        self,
        prompt: Prompt,
        *,
        read: Iterable[str] = (),
        edits: Mapping[str, Change] | None = None,
        grad: bool = False,
    ) -> Seen:
        """One pass with changes at places; with `grad` under autograd, and every value read retains its own."""
        with hooked(self.model, read, edits or {}, retain_grad=grad) as values:
            with nullcontext() if grad else torch.no_grad():
                logits = self.model(**self.inputs(prompt)).logits
        return Seen(logits, values)

    def generate(
        self,
        prompt: Prompt,
        n: int,
        *,
        read: Iterable[str] = (),
        edits: Mapping[str, Change] | None = None,
        steps: Collection[int] = (0,),
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Greedy ids [batch total], and the values at each step; `edits` hold at some `steps`, 0 is the prompt's."""
        inputs = self.inputs(prompt)
        inputs.pop("position_ids", None)
        with hooked(self.model, read, edits or {}, steps=steps) as values:
            ids = self.model.generate(**inputs, max_new_tokens=n, do_sample=False, pad_token_id=0)
        return ids, values

    def patterns(self, prompt: Prompt) -> tuple[Tensor, ...]:
        """Attention patterns [batch head query key] of every layer."""
        with torch.no_grad():
            return self.eager().model(**self.inputs(prompt), output_attentions=True).attentions

    def inputs(self, prompt: Prompt) -> dict[str, Tensor]:
        """Ids and mask; several texts are padded on the left, with the positions that each would have alone."""
        if isinstance(prompt, Tensor):
            return {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
        texts = [prompt] if isinstance(prompt, str) else prompt
        encoded = self.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        mask = encoded["attention_mask"]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return {"input_ids": encoded["input_ids"], "attention_mask": mask, "position_ids": positions}


@cache
def _model(family: str, n_layers: int, attention: str) -> PreTrainedModel:
    path = speaking.folder(family, n_layers)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation=attention).eval()


@contextmanager
def hooked(
    model: nn.Module,
    read: Iterable[str],
    edits: Mapping[str, Change],
    *,
    steps: Collection[int] = (0,),
    retain_grad: bool = False,
) -> Iterator[dict[str, list[Tensor]]]:
    """Changes first, in their order, then readers: what is read is what the model goes on with."""
    values: dict[str, list[Tensor]] = {place: [] for place in read}
    handles = [_hook(model, place, Changing(change, steps)) for place, change in edits.items()]
    handles += [_hook(model, place, Reading(values[place], retain_grad)) for place in values]
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()


class Changing:
    """A change at some of the passes that come by."""

    def __init__(self, change: Change, steps: Collection[int]) -> None:
        self.change, self.steps, self.step = change, steps, -1

    def __call__(self, value: Tensor) -> Tensor:
        self.step += 1
        return self.change(value.clone()) if self.step in self.steps else value


class Reading:
    """Keeps what comes by."""

    def __init__(self, values: list[Tensor], retain_grad: bool) -> None:
        self.values, self.retain_grad = values, retain_grad

    def __call__(self, value: Tensor) -> Tensor:
        if self.retain_grad and value.requires_grad:
            value.retain_grad()
        self.values.append(value)
        return value


def _hook(model: nn.Module, place: str, function: Change) -> Any:
    path, _, end = place.rpartition(".")
    module = model.get_submodule(path)
    if end == "output":
        return module.register_forward_hook(lambda module, args, output: _first_of_output(output, function))
    return module.register_forward_pre_hook(
        lambda module, args, kwargs: _first_of_input(args, kwargs, function), with_kwargs=True
    )


def _first_of_output(output: Any, function: Change) -> Any:
    if isinstance(output, Tensor):
        return function(output)
    if isinstance(output, tuple):
        return (function(output[0]), *output[1:])
    name = "logits" if "logits" in output else "last_hidden_state"
    output[name] = function(output[name])
    return output


def _first_of_input(args: tuple, kwargs: dict[str, Any], function: Change) -> tuple[tuple, dict[str, Any]]:
    if args:
        return (function(args[0]), *args[1:]), kwargs
    name = next(iter(kwargs))
    return args, {**kwargs, name: function(kwargs[name])}
