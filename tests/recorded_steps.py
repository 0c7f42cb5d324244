"""Generations whose logits are kept, with listeners and without, to compare recorded steps with usual ones."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from families import error, prompt
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.generation.decoder import Decoder
from nnzoo.generation.loop import options_for, run
from nnzoo.generation.taped import TapedStretch
from nnzoo.generation.tapes import Call, Tape

NEW = 30  # beyond Mistral's window of 7
TOKENS = prompt(3, 10)
PADDED = torch.ones(3, 10, dtype=torch.bool)
PADDED[0, :5], PADDED[2, :2] = False, False


class Keeping(Decoder):
    """A decoder that keeps the logits of each step."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.logits: list[Tensor] = []

    def choose(self, logits: Tensor) -> Tensor:
        self.logits.append(logits)
        return super().choose(logits)


def decoded(model: HookedModel, tokens: Tensor = TOKENS, mask: Tensor | None = None, **options) -> Keeping:
    """A decoder that is done; the model gave it its logits without gradients."""
    decoder = Keeping(options_for(model, tokens, mask, {"max_new_tokens": NEW, **options}, {}), tokens, mask)
    with torch.no_grad():
        run(model, decoder)
    return decoder


def agree(a: Keeping, b: Keeping, tolerance: float = 1e-6) -> None:
    assert torch.equal(a.ids, b.ids)
    assert error(torch.stack(a.logits), torch.stack(b.logits)) < tolerance


def listened(model: HookedModel, places: list[str], **options) -> tuple[Keeping, list[tuple[str, Tensor]]]:
    """A decoder that is done, and all that was heard."""
    heard: list[tuple[str, Tensor]] = []
    with ExitStack() as stack:
        for place in places:
            handle = model.hook_points[place].add_reader(lambda value, hook: heard.append((hook.name, value)))
            stack.callback(handle.remove)
        return decoded(model, **options), heard


def plainly(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """What a function gives where all steps run as usual."""
    with patch("nnzoo.generation.loop.recorded", return_value=None):
        with patch("nnzoo.tracing.walk.recorded", return_value=None):
            return function(*args, **kwargs)


@contextmanager
def counted() -> Iterator[SimpleNamespace]:
    """How many tapes were `made` inside the `with`, and their `replays`."""
    counts, written, replayed = SimpleNamespace(made=0, replays=0), Tape.written, TapedStretch._replayed

    def write(tape: Tape, work: Callable[[], Tensor]) -> tuple[Tensor, list[Call]]:
        counts.made += 1
        return written(tape, work)

    def replay(stretch: TapedStretch, x: Tensor, calls: list[Call]) -> Tensor:
        counts.replays += 1
        return replayed(stretch, x, calls)

    with patch.object(Tape, "written", write), patch.object(TapedStretch, "_replayed", replay):
        yield counts
