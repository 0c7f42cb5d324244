"""Who chooses the tokens in a trace of a generation, what they are drawn from, and who hears of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from nnzoo.generation import Decoder, Options, Stream, adopt, fork
from nnzoo.tracing.graph import Invoke
from nnzoo.tracing.recorder import TraceError

if TYPE_CHECKING:
    from nnzoo.tracing.traced import TracedModel


class Decoding:
    """The decoders of a trace's prompts."""

    def __init__(self, model: "TracedModel", streamer: Any = None, generator: torch.Generator | None = None) -> None:
        self._model, self._streamer = model, streamer
        self._generator = generator  # of the tokens that are drawn; None: one that stands where torch's then stands
        self.drawing: Invoke | None = None  # the first prompt whose tokens are drawn from torch's generator
        self.heard: Invoke | None = None  # the prompt of whose tokens the streamer hears

    def decode(self, invoke: Invoke, options: Options | dict[str, Any], streamer: Any = None) -> None:
        """Let a prompt be generated from."""
        settled = options
        if not isinstance(settled, Options):
            settled = self._model.options(invoke.tokens, invoke.attention_mask, settled)
        seeded = settled.seed is not None or not settled.do_sample
        invoke.decoder = Decoder(
            settled,
            invoke.tokens,
            invoke.attention_mask,
            tokenizer=self._model.tokenizer if settled.stop_strings else None,
            generator=None if seeded else self._numbers(invoke),
        )
        invoke.tokens, invoke.attention_mask = invoke.decoder.tokens, invoke.decoder.attention_mask
        self._stream(invoke, self._streamer if streamer is None else streamer)

    def _numbers(self, invoke: Invoke) -> torch.Generator:
        """What a prompt's tokens are drawn from: what torch would draw next, and for further prompts other numbers."""
        generator = self._generator or fork(self._model.device)
        if self.drawing is None:
            self.drawing = invoke
        else:
            generator.manual_seed(
                int(torch.randint(2**62, (), generator=generator, device=generator.device)) + invoke.index
            )
        return generator

    def _stream(self, invoke: Invoke, streamer: Any) -> None:
        if streamer is None:
            return
        if self.heard is not None:
            raise TraceError("a streamer hears of one prompt, and this is another one of the trace")
        self.heard, invoke.decoder.stream = invoke, Stream(streamer)

    def begin(self) -> None:
        """The passes that come now are those that count: of them the streamer hears."""
        if self.heard is not None:
            self.heard.decoder.stream.begin(self.heard.decoder)

    def end(self, decoders: Mapping[Invoke, Decoder]) -> None:
        """They are over, and have left the decoders so; from where their random numbers end torch's go on."""
        if self.heard is not None:
            self.heard.decoder.stream.end(decoders[self.heard])
        self.adopt(decoders)

    def adopt(self, decoders: Mapping[Invoke, Any]) -> None:
        """Let torch's random numbers go on from where a generation that is over has left them."""
        drawn = None if self.drawing is None or self.drawing not in decoders else decoders[self.drawing].generator
        if drawn is not None:
            adopt(drawn)
