"""Streaming: who hears of a generation's tokens as they are chosen."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nnzoo.generation.decoder import Decoder


class Stream:
    """Tells a streamer (transformers' protocol) of a decoder's prompts by `put`, of each step's tokens, of the end.

    A decoder and its copies may go over the same steps several times: between `begin` and `end` the streamer hears of
    each step once.
    """

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer
        self._heard = 0  # positions of the ids
        self._is_open = False

    def begin(self, decoder: Decoder) -> None:
        """The prompts, [batch pos]."""
        self._is_open, self._heard = True, decoder.tokens.shape[1]
        self._streamer.put(decoder.tokens.cpu())

    def tell(self, decoder: Decoder) -> None:
        """The tokens of the steps that were not told of yet, each [batch]."""
        if not self._is_open:
            return
        for new in decoder.ids[:, self._heard :].unbind(1):
            self._heard += 1
            self._streamer.put(new.cpu())

    def end(self, decoder: Decoder) -> None:
        """All has been generated."""
        self.tell(decoder)
        self._is_open = False
        self._streamer.end()


@contextmanager
def streamed(decoder: Decoder, streamer: Any) -> Iterator[None]:
    """What the decoder chooses inside the `with` is what a streamer, if there is one, hears."""
    if streamer is None:
        yield
        return
    decoder.stream = Stream(streamer)
    decoder.stream.begin(decoder)
    yield
    decoder.stream.end(decoder)
