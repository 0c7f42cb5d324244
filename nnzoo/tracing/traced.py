"""What makes a LanguageModel traced: `trace`, `generate`, and which body is running."""

from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from nnzoo.envoys.answers import answer
from nnzoo.envoys.whole import WholeModel
from nnzoo.generation import Decoder, Options, adopt, fork, options_for, run, streamed
from nnzoo.generation.options import warn
from nnzoo.prompt_names import KEYWORDS
from nnzoo.prompts import Prompt, Reader, read_prompt
from nnzoo.tracing.edit_files import load_edits, save_edits
from nnzoo.tracing.editing import EditTracer
from nnzoo.tracing.edits import Edit
from nnzoo.tracing.pending import Generated
from nnzoo.tracing.recorder import Recorder, TraceError
from nnzoo.tracing.scanning import ScanTracer
from nnzoo.tracing.session import Session, new_session, session_of
from nnzoo.tracing.shapes import Shapes
from nnzoo.tracing.tracer import Tracer

if TYPE_CHECKING:
    from nnzoo.remote.session import RemoteSession


@dataclass(frozen=True, eq=False)
class Facts:
    """What a trace needs to know of a model, which is so as long as that keeps its dtype and its device."""

    dtype: torch.dtype
    device: torch.device
    shapes: Shapes
    reader: Callable[[Callable[[], Any]], Reader]  # of prompts, with what gives the tokenizer


class TracedModel(WholeModel):
    """The part of LanguageModel that opens traces."""

    tokenizer: Any
    edits: tuple[Edit, ...]
    block_output: str
    _facts: Facts | None = None
    _checkpoint: Any
    _tracer: ContextVar[Tracer | None]
    _session: ContextVar[Session | None]

    def trace(
        self,
        *args: Any,
        grad: bool = False,
        max_batch: int | None = None,
        validate: bool = True,
        scan: bool = True,
        trace: bool = True,
        remote: bool | str = False,
        blocking: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Look into a forward pass: `with model.trace("The Eiffel Tower is in") as tracer: ...`.

        The prompt is whatever `nnzoo.prompts.read_prompt` takes; without one, the body has several: `tracer.invoke`.
        With `grad=True` values leave the trace with their autograd graph. `max_batch` is how many rows run in one pass
        at most. Shapes are always checked, without running the model: `validate` and `scan` ask for what is so anyway.
        With `trace=False` there is no body: the model runs at once, and gives what `model(prompt)` gives.

        With `remote=True` the server at CONFIG.API.HOST runs it (or the one whose address `remote` is), and what is
        saved comes back; with `blocking=False` later, by `tracer.job`.
        """
        if not trace:
            if grad or max_batch is not None:
                raise ValueError("grad= and max_batch= are of a body's passes, and with trace=False there is no body")
            return self._logits(self.prepare(*args, **kwargs), remote) if remote else self(*args, **kwargs)
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch is how many rows run in one pass, at least 1, not {max_batch}")
        prompt = self.prepare(*args, **kwargs) if args or kwargs else None
        return self._open(prompt, remote, blocking, grad=grad, max_batch=max_batch)

    def _open(self, prompt: Prompt | None, remote: bool | str, blocking: bool = True, **how: Any) -> Tracer:
        if self._remote_session is not None:
            return self._remote_session.open(self, prompt, **how)
        if not remote:
            return Tracer(self, prompt, **how)
        from nnzoo.remote.tracing import RemoteTracer, Target  # they stand on this package

        return RemoteTracer(self, prompt, Target(remote, blocking), **how)

    def _logits(self, prompt: Prompt, remote: bool | str) -> Tensor:
        with self._open(prompt, remote) as tracer:
            logits = tracer.result.save()
        return answer(logits, prompt.labels)

    def generate(
        self,
        *args: Any,
        tokenizer: Any = None,
        streamer: Any = None,
        remote: bool | str = False,
        blocking: bool = True,
        **kwargs: Any,
    ) -> Any:
        """The prompt's ids followed by new ones, by the options of transformers' `generate` (see `Options`).

        Entered by a `with`, it is a trace of the generation; inside a trace, without a prompt, it generates from the
        prompt that the body speaks of. What is not asked is as the checkpoint's generation_config.json says. A
        `streamer` (transformers' protocol) hears each token when it is chosen; given with a prompt it makes the
        generation run at once, given without one it hears when the block of the trace has ended. `remote` and
        `blocking` are as for `trace`; a server tells no streamer.

        >>> from nnzoo import LanguageModel
        >>> model = LanguageModel("nnzoo/tiny-gpt2")
        >>> model.tokenizer.decode(model.generate("The capital of France is", max_new_tokens=2)[0])
        'The capital of France is Paris.'
        """
        given = {name: kwargs.pop(name) for name in KEYWORDS if name in kwargs}
        if self._tracer.get() is not None:
            if args or given:
                raise TraceError("generate() inside a trace takes options only: the prompt is the trace's")
            _warn_of_cache(kwargs)
            return self._tracer.get().generate(kwargs, streamer)  # type: ignore[union-attr]  # it was there a line ago
        opens = partial(self._open_generation, kwargs)
        if not args and not given:
            return Generated(_without_prompt, partial(opens, None, remote, blocking, options=kwargs, streamer=streamer))
        prompt = self.prepare(*args, **given)
        options = self.options(prompt.tokens, prompt.attention_mask, kwargs)  # what is wrong is said at this line
        if options.stop_strings and tokenizer is None:
            tokenizer = self.tokenizer
        make = partial(self._generate, prompt, options, tokenizer, streamer, fork(self.device), remote)
        if streamer is not None:
            ids = make()
            return Generated(lambda: ids, _has_run)
        generated = Generated(make, partial(opens, prompt, remote, blocking, options=options))
        if self._remote_session is not None:
            self._remote_session.generated.append(generated)
        return generated

    def _open_generation(self, asked: Mapping[str, Any], *args: Any, **how: Any) -> Tracer:
        _warn_of_cache(asked)
        return self._open(*args, **how)

    def _generate(
        self,
        prompt: Prompt,
        options: Options,
        tokenizer: Any,
        streamer: Any,
        numbers: torch.Generator,
        remote: bool | str = False,
    ) -> Int[Tensor, "batch total"]:
        """The ids, by the fast loop where no edit, no embedding and no server has a say."""
        if self.edits or prompt.embeds is not None or remote or self._remote_session is not None:
            how = {"options": options, "streamer": streamer, "generator": numbers}
            with self._open(prompt, remote, **how) as tracer:
                ids = tracer.result.save()
            return ids
        drawn = None if options.seed is not None or not options.do_sample else numbers
        decoder = Decoder(options, prompt.tokens, prompt.attention_mask, tokenizer=tokenizer, generator=drawn)
        with self.lock, streamed(decoder, streamer):
            run(self._model, decoder)
        if drawn is not None:
            adopt(drawn)
        return decoder.ids

    def options(self, tokens: Tensor, attention_mask: Tensor | None, asked: dict[str, Any]) -> Options:
        """How tokens are chosen: what is asked, else what the checkpoint says. Raises OptionError."""
        if attention_mask is not None and not attention_mask[:, -1].all():
            warn("a prompt ends with padding, and what is generated follows that: pad on the left instead")
        return options_for(self.skeleton, tokens, attention_mask, asked, self._checkpoint.origin.generation)

    # --- other contexts ------------------------------------------------------------------------------------------

    def scan(self, *args: Any, validate: bool = True, **kwargs: Any) -> Tracer:
        """A trace that computes nothing and reads no weights: shapes and dtypes are there in its body.

        The prompt is as for `trace`. What is held afterwards is a meta tensor. Raises TraceError where a number is
        looked at. Shapes are always checked: `validate` asks for what is so anyway.

        >>> from nnzoo import LanguageModel
        >>> model = LanguageModel("nnzoo/tiny-gpt2")
        >>> with model.scan("The capital of France is"):
        ...     width = model.transformer.h[1].mlp.act.output.shape[-1]
        >>> width == model.config.d_mlp
        True
        """
        return ScanTracer(self, self.prepare(*args, **kwargs) if args or kwargs else None)

    def session(self, *, remote: bool | str = False, blocking: bool = True) -> Session:
        """Traces that belong together: `with model.session(): ...`. A later one uses values of those before it.

        >>> from nnzoo import LanguageModel
        >>> model = LanguageModel("nnzoo/tiny-gpt2")
        >>> with model.session():
        ...     with model.trace("The capital of France is"):
        ...         france = model.transformer.h[2].output[0][:, -1]
        ...     with model.trace("The capital of Italy is"):
        ...         model.transformer.h[1].output[0][:, -1] = france
        ...         logits = model.output.save()
        >>> model.tokenizer.decode(logits[0, -1].argmax())
        ' Paris'

        With `remote=True` it is one request: its traces, and what is done with their values between them, are recorded,
        and run on the server when the session ends. What is saved comes back.
        """
        return new_session(self, remote, blocking)

    @property
    def _remote_session(self) -> "RemoteSession | None":
        session: Any = session_of(self)
        return session if session is not None and session.is_remote else None

    @property
    def elsewhere(self) -> Recorder | None:
        """What records for a server, in a remote trace or session of a model whose weights are not here; or None."""
        if self._native is not None:
            return None
        tracer = self._tracer.get()
        if tracer is not None:
            return tracer.recorder if tracer.is_remote else None
        return None if self._remote_session is None else self._remote_session.program.recorder

    def edit(self, *, inplace: bool = False) -> EditTracer:
        """Changes that hold in every later trace, generation and call of a model: `with model.edit() as edited: ...`.

        The edited model is a copy that shares the weights, and this one stays as it is; with `inplace=True` it is
        changed itself, and the `with` binds the tracer. `as (tracer, edited)` binds both. Edits add up, in order. The
        body is recorded once, for a prompt of 7 tokens, and done again for each prompt: sizes that it reads follow the
        prompt, but Python's loops over them, `if`s and random tensors are decided once. It can look at no number. What
        stands in `for _ in edited.tracer.iter[:]` holds at every step of a generation, all else in the first pass.

        >>> from nnzoo import LanguageModel
        >>> model = LanguageModel("nnzoo/tiny-gpt2")
        >>> with model.edit() as edited:
        ...     edited.transformer.h[1].mlp.output[:] = 0
        >>> (edited("The capital") != model("The capital")).any().item()
        True
        """
        return EditTracer(self if inplace else copy(self), inplace=inplace)

    def __iter__(self) -> Iterator[Any]:
        tracer = self._tracer.get()
        if isinstance(tracer, EditTracer):  # nnsight's form: with model.edit() as (tracer, edited): ...
            return iter((tracer, self))
        return super().__iter__()

    def clear_edits(self) -> None:
        """Take all edits of this model away. Raises TraceError inside a trace."""
        self._check_no_trace()
        self.edits = ()

    def _check_no_trace(self) -> None:
        if self._tracer.get() is not None:
            raise TraceError("the edits of a model stay as they are inside a trace of it; change them before or after")

    def save_edits(self, path: str | Path) -> None:
        """Write the edits of this model into a file (safetensors, with JSON in its header), which holds no code.

        Raises ValueError where there is none, GraphError where one is more than data: a function of your own that was
        recorded whole, a torch.autograd.Function.
        """
        save_edits(self, path)

    def load_edits(self, path: str | Path) -> None:
        """Add the edits of a file that `save_edits` wrote, by whomever: nothing in it is run but PyTorch's functions.

        Modules of your own that were called with `hook=True` must be attached where they were. Raises GraphError for a
        file that is none, or of another model.
        """
        self._check_no_trace()
        self.edits = (*self.edits, *load_edits(self, path))

    # --- the running body ----------------------------------------------------------------------------------------

    @property
    def tracer(self) -> Tracer:
        """The trace whose body is running. Raises TraceError outside of one."""
        tracer = self._tracer.get()
        if tracer is None:
            raise TraceError("values exist inside a trace only: with model.trace(prompt): ...")
        return tracer

    def enter(self, tracer: Tracer) -> None:
        """A body begins, perhaps in that of another trace. Raises TraceError for one that has begun before."""
        if tracer.began:
            raise TraceError("a trace is entered once; model.trace(prompt) makes another")
        tracer.began, tracer.outer = True, self._tracer.get()
        self._tracer.set(tracer)

    def leave(self, tracer: Tracer) -> None:
        """A body ends; bodies of generators may end in any order."""
        tracer.left = True
        running = self._tracer.get()
        while running is not None and running.left:
            running = running.outer
        self._tracer.set(running)

    @property
    def facts(self) -> Facts:
        """What a trace needs to know of the model, worked out once for the model as it is."""
        device, dtype = self._place_and_kind
        if self._facts is None or self._facts.dtype != dtype or self._facts.device != device:
            pad, skeleton = self._checkpoint.origin.generation.get("pad_token_id"), self.skeleton
            reader = partial(
                Reader,
                d_vocab=skeleton.config.d_vocab,
                d_model=skeleton.config.d_model,
                max_tokens=skeleton.max_tokens,
                dtype=dtype,
                device=device,
                pad_id=pad if isinstance(pad, int) and 0 <= pad < skeleton.config.d_vocab else 0,
            )
            self._facts = Facts(dtype, device, Shapes(skeleton, self.order), reader)
        return self._facts

    # --- prompts -------------------------------------------------------------------------------------------------

    def prepare(self, *args: Any, **kwargs: Any) -> Prompt:
        """Any kind of prompt as tensors on the model's device; arguments and errors are those of `read_prompt`."""
        return read_prompt(self.facts.reader(lambda: self.tokenizer), *args, **kwargs)


def _has_run() -> Tracer:
    raise TraceError(
        "with a prompt and a streamer generate() has run at once. A trace of it takes the prompt by an invoke: "
        "with model.generate(max_new_tokens=..., streamer=streamer) as tracer, tracer.invoke(prompt): ..."
    )


def _warn_of_cache(asked: Mapping[str, Any]) -> None:
    """Of what is generated alone the cache makes no difference, and of values and changes at steps it does."""
    if asked.get("use_cache") is False:
        warn(
            "use_cache=False has no effect in a trace: each step after the prompt's has the newest token alone, and "
            "what was changed at a token before stays changed. model.trace(ids) has them all, of ids so far"
        )


def _without_prompt() -> Tensor:
    raise TraceError("generate() takes a prompt, unless `with tracer.invoke(prompt):` gives it one")
