"""The model that a study looks at, and its prompts as ids."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from nnzoo.analysis.results import POSITIONS, Axis
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.language_model import LanguageModel

Model = LanguageModel | HookedModel
Prompts = str | list[str] | Tensor  # texts, or ids [batch pos] or [pos]
Token = str | int
Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")


def exclusive(function: Callable[Parameters, Answer]) -> Callable[Parameters, Answer]:
    """A function of a model, which has it to itself while it runs: other threads' traces and analyses wait."""

    @wraps(function)
    def alone(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Answer:
        with lock_of(args[0] if args else kwargs.get("model")):
            return function(*args, **kwargs)

    return alone


def lock_of(model: Any) -> AbstractContextManager:
    """What a LanguageModel's passes hold; a native model leaves it to its user."""
    return model.lock if isinstance(model, LanguageModel) else nullcontext()


@dataclass(frozen=True, eq=False)
class Tokens:
    """Prompts as the model reads them, padded on the left."""

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"] | None = None  # False: padding. None: no padding

    @property
    def n_pos(self) -> int:
        return self.ids.shape[1]

    @property
    def real(self) -> Bool[Tensor, "batch pos"]:
        """True where there is no padding."""
        return torch.ones_like(self.ids, dtype=torch.bool) if self.mask is None else self.mask

    def repeated(self, n: int) -> "Tokens":
        """Every prompt n times, the whole batch after itself."""
        return Tokens(self.ids.repeat(n, 1), None if self.mask is None else self.mask.repeat(n, 1))


class Subject:
    """The native model beneath a LanguageModel, or one that came as it is, with what reads its prompts.

    >>> subject = Subject(LanguageModel("nnzoo/tiny-gpt2"))
    >>> subject.labels(subject.read("The capital of France is"))
    ('The', ' capital', ' of', ' France', ' is')
    """

    def __init__(self, model: Model) -> None:
        if isinstance(model, LanguageModel):
            if model.edits:
                raise ValueError(
                    "an analysis runs the native model, which knows nothing of this model's edits; without them: "
                    "clear_edits(), or the model that was not edited"
                )
            self.native: HookedModel = model._model
        elif isinstance(model, HookedModel):
            self.native = model
        else:
            raise TypeError(f"a model is a LanguageModel or a HookedModel (nnzoo.load), not {type(model).__name__}")
        self._model = model

    @property
    def n_layers(self) -> int:
        return len(self.native.blocks)

    @property
    def n_heads(self) -> int:
        return self.native.config.n_heads

    @property
    def tokenizer(self) -> Any:
        """The tokenizer. Raises ValueError where there is none."""
        return self._model.tokenizer

    def read(self, prompts: Prompts) -> Tokens:
        """Ids of texts or ids; the errors are those of the model."""
        if isinstance(self._model, LanguageModel):
            prompt = self._model.prepare(prompts)
            return Tokens(prompt.tokens, prompt.attention_mask)
        return Tokens(*self.native.tokens_and_mask(prompts))

    def pair(self, base: Prompts, source: Prompts) -> tuple[Tokens, Tokens]:
        """Two sets of prompts whose tokens stand in the same places. Raises ValueError where they do not."""
        a, b = self.read(base), self.read(source)
        if a.ids.shape != b.ids.shape:
            raise ValueError(
                f"base has {list(a.ids.shape)} tokens [batch pos], source {list(b.ids.shape)}: a value of one has no "
                f"place in the other. base: {self.labels(a)}; source: {self.labels(b)}"
            )
        if not torch.equal(a.real, b.real):
            raise ValueError("base and source are padded differently: prompt by prompt they need as many tokens")
        return a, b

    def ids(self, tokens: Token | Sequence[Token] | Tensor) -> Int[Tensor, "some"]:
        """Ids of one token or several, each a text or an id."""
        if isinstance(tokens, Tensor):
            return tokens.reshape(-1).to(self.native.device)
        several = [tokens] if isinstance(tokens, (str, int)) else tokens
        return torch.tensor([self._id(token) for token in several], device=self.native.device)

    def _id(self, token: Token) -> int:
        if isinstance(token, int):
            return token
        ids = self.tokenizer.encode(token, add_special_tokens=False)
        if len(ids) != 1:
            pieces = [self.text(i) for i in ids]
            raise ValueError(f"{token!r} is {len(ids)} tokens, not one: {pieces}. A leading space may be missing.")
        return ids[0]

    def check_heads(self, heads: Sequence[tuple[int, int]]) -> None:
        """Raise ValueError for a (layer, head) that the model does not have."""
        for layer, head in heads:
            if not (0 <= layer < self.n_layers and 0 <= head < self.n_heads):
                size = f"{self.n_layers} layers of {self.n_heads} heads"
                raise ValueError(f"there is no head {head} in layer {layer}: the model has {size}")

    def text(self, token: int) -> str:
        """The text of an id; the id itself where the model has no tokenizer."""
        try:
            return self.tokenizer.decode([token])
        except ValueError:
            return str(token)

    def labels(self, tokens: Tokens) -> tuple[str, ...]:
        """The text of each position, that of the first prompt; with "…" where others have another token there."""
        first, agree = tokens.ids[0].tolist(), (tokens.ids == tokens.ids[:1]).all(dim=0).tolist()
        return tuple(self.text(i) + ("" if same else "…") for i, same in zip(first, agree, strict=True))

    def axis(self, name: str, tokens: Tokens | None = None) -> Axis:
        """An axis of a result: layers and heads by number, positions by their tokens."""
        if name in POSITIONS and tokens is not None:
            return Axis(name, self.labels(tokens))
        sizes = {"layer": self.n_layers, **self.native.axis_sizes}
        return Axis(name, tuple(map(str, range(sizes[name]))))
