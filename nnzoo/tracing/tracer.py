"""The `with` block of a trace: its body records; leaving it runs the model and fills in what is still held."""

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from einops import rearrange
from torch import Tensor

from nnzoo.absent import absent
from nnzoo.generation import Options
from nnzoo.prompts import Prompt
from nnzoo.tracing.blame import add_hints
from nnzoo.tracing.caching import Cache, CacheView, Modules
from nnzoo.tracing.decoding import Decoding
from nnzoo.tracing.execution import Execution
from nnzoo.tracing.filling import fill_in, held
from nnzoo.tracing.gradients import Gradients
from nnzoo.tracing.graph import END, LOGITS, Chosen, Invoke, Node, Result, Stage
from nnzoo.tracing.graph_object import Graph
from nnzoo.tracing.infer import UNKNOWN
from nnzoo.tracing.invoking import InvokeBody, Stop
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.lines import (
    end_at_the_user,
    end_at_what_was_recorded,
    user_line,
)
from nnzoo.tracing.places import Places, View
from nnzoo.tracing.playback import Playbacks
from nnzoo.tracing.recorder import Recorder, TraceError
from nnzoo.tracing.steps import StepIndex
from nnzoo.tracing.tape import Read, Write
from nnzoo.tracing.wholes import stack_ids

if TYPE_CHECKING:
    from nnzoo.tracing.traced import TracedModel


class Tracer:
    """A look into the model's passes over one prompt, or over several: `with tracer.invoke(prompt): ...`.

    >>> from nnzoo import LanguageModel
    >>> model = LanguageModel("nnzoo/tiny-gpt2")
    >>> with model.trace() as tracer:
    ...     with tracer.invoke("The capital of France is"):
    ...         france = model.transformer.h[2].output[0]
    ...     with tracer.invoke("The capital of Italy is"):
    ...         model.transformer.h[1].output[0][:, -1] = france[:, -1]
    ...         logits = model.output.save()
    >>> model.tokenizer.decode(logits[0, -1].argmax())
    ' Paris'
    """

    ended = "a step of a generation that was not made"  # what values belong to that are not there afterwards
    outer: "Tracer | None" = None  # the trace in whose body this one stands
    began = left = False
    is_remote = False  # whether a server runs it

    def __init__(
        self,
        model: "TracedModel",
        prompt: Prompt | None = None,
        *,
        options: Options | dict[str, Any] | None = None,
        grad: bool = False,
        max_batch: int | None = None,
        streamer: Any = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.model = model
        self.step = 0  # which step of a generation the body speaks of
        self.invokes: list[Invoke] = []
        self._options, self._grad = options, grad  # generate's options; None: one pass of the model
        facts = model.facts
        self._shapes = facts.shapes
        self._execution: Any = Execution(model, self._shapes, max_batch)
        self.recorder = Recorder(facts.device, model.order, self._execution.look)
        self.recorder.needs_grad = grad
        self.gradients = Gradients(self.recorder)
        self._places = Places(self.recorder, self._shapes)
        self._scope: list[Invoke] = []  # whose rows the body speaks of
        self._prompt = prompt
        self._decoding = Decoding(model, streamer, generator)
        self.ahead: dict[str, int] = {}  # by how many steps `.next()` has moved a module on
        self._at_the_end: list[Callable[[Tracer], None]] = []  # of this one
        self.edits = Playbacks()

    # --- the block -----------------------------------------------------------------------------------------------

    def __enter__(self) -> Any:
        self.model.enter(self)
        try:
            if self._prompt is not None:
                self._scope = [self.add(self._prompt)]
        except BaseException:
            self.model.leave(self)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        try:
            if kind in (None, Stop):
                self._finish()
                self.recorder.ended = self.ended
            elif error is not None:
                add_hints(error, self.model.block_output)
                end_at_the_user(error, traceback)
        except Exception as raised:
            raise end_at_what_was_recorded(raised) from raised.__cause__
        finally:
            self.model.leave(self)
            self.recorder.close()
        return kind is Stop

    def _finish(self) -> None:
        self._complete()
        lazies = held(self.recorder)
        nodes = [lazy._node for lazy in lazies]
        if self._decoding.heard is not None:
            nodes.append(self._ids_of(self._decoding.heard)._node)  # all steps are made for who hears of them
        self.recorder.roots = nodes
        if nodes or self.recorder.effects:
            with_graph = self._grad or not self.gradients.backwards
            self._decoding.begin()
            values = self._execution.finish(self.recorder, nodes, carries_graph=self._grad)
            self._decoding.end(self._execution.decoders)
            fill_in(lazies, values, with_graph=with_graph)
        self._drop_steps_not_made()

    def _complete(self) -> None:
        """The body is over: what it left to its end is recorded. Raises TraceError where something is missing."""
        self.edits.finish()
        if not self.invokes:
            raise TraceError("the trace has no prompt: model.trace(prompt), or `with tracer.invoke(prompt):` inside it")
        self.gradients.check_complete()
        self.recorder.settle_functions()
        if self.recorder.custom is not None and self.recorder.needs_grad:
            raise TraceError(
                f"the torch.autograd.Function at {self.recorder.custom} was recorded without its own backward, as it "
                "does not do the same each time, or uses traced values that are not its arguments; give it what it "
                "uses, or take gradients outside of the trace",
                self.recorder.custom,
            )
        for last in self._at_the_end:
            last(self)
        self.recorder.appended.let_go()

    def _drop_steps_not_made(self) -> None:
        for steps in self.recorder.lists:  # the text may have ended before the last of them
            steps[:] = [value for value in steps if not isinstance(value, LazyTensor)]
        self.recorder.appended.drop_steps_not_made(self.recorder)

    # --- prompts -------------------------------------------------------------------------------------------------

    def invoke(self, *args: Any, **kwargs: Any) -> InvokeBody:
        """Another prompt, of which the body of the `with` speaks; without one, of all prompts so far as one batch.

        It is whatever `trace` takes. Each prompt sees its own rows and its own tokens, as if it ran alone.
        """
        return InvokeBody(self, self.model.prepare(*args, **kwargs) if args or kwargs else None)

    def add(self, prompt: Prompt) -> Invoke:
        """Add a prompt's rows to the trace."""
        invoke = Invoke(self._next_index(), prompt.tokens, prompt.attention_mask, prompt.labels)
        if self._options is not None:
            invoke.last_only = True
            self._decoding.decode(invoke, self._options)
        self.invokes.append(invoke)
        if prompt.embeds is not None:
            self._places.put([invoke], "hook_embed", 0, prompt.embeds)
        self.edits.begin(self, invoke)
        return invoke

    def _next_index(self) -> int:
        return len(self.invokes)

    def generate(self, options: dict[str, Any], streamer: Any = None) -> LazyTensor:
        """Let the prompts that the body speaks of be generated from; what was edited so far holds in the first pass.

        The ids that come, [batch total]. A `streamer` hears of them when the block has ended and the model runs.
        """
        for invoke in self.scope:
            if invoke.decoder is not None:
                raise TraceError("this prompt is generated from already")
            if options.get("num_return_sequences", 1) != 1:
                raise TraceError(
                    "num_return_sequences inside a trace: model.generate(prompt, ...) as the `with` itself"
                )
            self._decoding.decode(invoke, options, streamer)
            self.edits.go_on(invoke)
        return self.ids

    # --- values --------------------------------------------------------------------------------------------------

    @property
    def scope(self) -> list[Invoke]:
        """The prompts that the body speaks of. Raises TraceError outside of an invoke."""
        if not self._scope:
            raise TraceError("values belong to a prompt: with tracer.invoke(prompt): ...")
        return self._scope

    def read(self, hook: str, *, ahead: int = 0) -> LazyTensor:
        """The value at a hook point, with all that was done to it so far; `ahead` is by how many steps."""
        step = self._step_of(hook, ahead)
        self.edits.reach(self._scope, hook, step)
        lazy, tape = self._places.read(self.scope, hook, step), self.recorder.tape
        if tape is None:
            return lazy
        if lazy._node.index < tape.start:  # what was read before the tape stays of its own step: this is another one
            alias = self.recorder.function(Tensor.view_as, lazy._node, lazy._node)
            alias.hook, lazy = hook, LazyTensor(alias, self.recorder)
        tape.entries.append(Read(hook, step, lazy._node))
        return lazy

    def seen_as(self, lazy: LazyTensor, pattern: str) -> LazyTensor:
        """A place's value in another arrangement of its axes; its gradient is the place's."""
        seen = rearrange(lazy, pattern)
        seen._node.view = View(pattern, lazy.shape)
        return seen

    def put(self, hook: str, value: Tensor, *, ahead: int = 0) -> None:
        """From here on the model goes on with `value` at a hook point; `ahead` is by how many steps."""
        step = self._step_of(hook, ahead)
        self.edits.reach(self._scope, hook, step)
        if self.recorder.tape is not None:
            self.recorder.tape.entries.append(
                Write(hook, step, value._node if isinstance(value, LazyTensor) else value, user_line())
            )
        self._places.put(self.scope, hook, step, value)

    def _step_of(self, hook: str, ahead: int) -> int:
        step = self.step + ahead
        if step and any(invoke.decoder is None for invoke in self.scope):
            raise TraceError(f"{hook} at step {step}: only a generation has steps, model.generate(prompt, ...)")
        if step and step >= self.most_steps:
            raise TraceError(f"{hook} at step {step}: the generation has {self.most_steps} steps, 0 to its last")
        return step

    @property
    def result(self) -> LazyTensor:
        """What the model gives: the ids [batch total] of a generation, else the logits [batch pos d_vocab]."""
        if all(invoke.decoder is None for invoke in self.scope):
            return self.read(LOGITS)
        return self.ids

    @property
    def ids(self) -> LazyTensor:
        """The prompt's ids and the generated ones, [batch total]; of several prompts, padded on both sides."""
        if any(invoke.decoder is None for invoke in self.scope):
            raise TraceError("nothing is generated here: model.generate(max_new_tokens=...)")
        each = [self._ids_of(invoke) for invoke in self.scope]
        if len(each) == 1:
            return each[0]
        n_pos, padding = [invoke.n_pos for invoke in self.scope], self.scope[0].decoder.options.padding
        args = (n_pos, padding, *(ids._node for ids in each))
        if any(ids._node.meta is None for ids in each):
            return LazyTensor(self.recorder.call(stack_ids, args, {}, UNKNOWN), self.recorder)
        return LazyTensor(self.recorder.function(stack_ids, *args), self.recorder)

    def _ids_of(self, invoke: Invoke) -> LazyTensor:
        meta = None
        if not invoke.decoder.may_end_early:
            total = invoke.n_pos + invoke.decoder.options.max_new_tokens
            meta = torch.empty(invoke.rows, total, dtype=torch.long, device="meta")
        return LazyTensor(self.recorder.add(Result, (), needs={invoke: END}, meta=meta, invoke=invoke), self.recorder)

    # --- steps ---------------------------------------------------------------------------------------------------

    @property
    def iter(self) -> StepIndex:
        """Steps of the generation, `tracer.iter[2]`, `tracer.iter[1:5]`, `tracer.iter[:]`: with `for` or `with`."""
        return StepIndex(self)

    def all(self) -> Any:
        """All steps of the generation, with `for` or `with`."""
        return self.iter[:]

    def next(self, n: int = 1) -> "Tracer":
        """From here on the body speaks of a later step."""
        if self.step + n >= self.most_steps:
            raise TraceError(f"step {self.step + n}: the generation has {self.most_steps} steps")
        self.step += n
        return self

    @property
    def most_steps(self) -> int:
        """How many steps there are at most."""
        return max(1 if i.decoder is None else i.decoder.options.max_new_tokens for i in self.scope)

    def reaches(self, step: int) -> bool:
        """Whether the generation comes to a step; asked only where the text may end before, and then by running it."""
        if step == 0:
            return True
        asked = [i for i in self.scope if i.decoder is not None and i.decoder.may_end_early]
        if len(asked) < len(self.scope):
            return step < self.most_steps
        stage = Stage(step - 1, len(self.model.order))
        nodes: list[Node] = [self.recorder.add(Chosen, (), needs={i: stage}, invoke=i) for i in asked]
        found = self.recorder._run(self.recorder, nodes)
        return any(found.get(node, False) for node in nodes)

    def check_running(self) -> None:
        """Raise TraceError where the trace's own body is not running."""
        if self.model._tracer.get() is not self:
            raise TraceError("this trace's body is not running: with model.trace() as tracer: ...")

    def _check_no_tape(self, what: str) -> None:
        if self.recorder.tape is not None:
            raise TraceError(f"{what} is not possible inside {self.recorder.tape.why}")

    @property
    def graph(self) -> Graph:
        """What the body has recorded: it prints, it draws, and asked for inside the body it can be stored.

        Asked for inside the body, it keeps the tensors that the body was given; after the trace alone, it has let them
        go, and prints and draws all the same.

        >>> from nnzoo import LanguageModel
        >>> model = LanguageModel("nnzoo/tiny-gpt2")
        >>> with model.trace("The keys to the cabinet") as tracer:
        ...     norm = model.transformer.h[1].output[0].norm().save()
        >>> print(tracer.graph)
        graph of 2 nodes, 1 prompt...
        """
        if self.recorder.open:
            self.recorder.keeps_tensors = True
            self.edits.finish()
        return Graph.of(self)

    # --- many values at once -------------------------------------------------------------------------------------

    def cache(
        self,
        modules: Modules = None,
        *,
        include_output: bool = True,
        include_inputs: bool = False,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        detach: bool = True,
    ) -> CacheView:
        """The values of all modules, or of some (envoys, paths, lists of them), after everything that the body does.

        Inside an invoke they are that prompt's; outside, those of all prompts of the trace as one batch, padded on the
        left. In a generation they are those of every step that is made. Attention patterns are None, and are not
        computed, unless the attention module is named. `device` and `dtype` (of floating-point values) convert what is
        kept. Raises KeyError for a path that leads to no module.

        >>> from nnzoo import LanguageModel
        >>> model = LanguageModel("nnzoo/tiny-gpt2")
        >>> with model.trace("The capital of France is") as tracer:
        ...     cache = tracer.cache()
        >>> cache["model.transformer.h.1.mlp"].output.shape == cache.model.transformer.h[1].output[0].shape
        True
        """
        self._check_no_tape("a cache")
        cache = Cache(
            self,
            modules,
            include_output=include_output,
            include_inputs=include_inputs,
            device=device,
            dtype=dtype,
            detach=detach,
        )
        scope = self._scope
        self._at_the_end.append(lambda tracer: cache.fill(tracer, scope or tracer.invokes))
        return CacheView(cache)

    # --- the order of things -------------------------------------------------------------------------------------

    def barrier(self, n_participants: int = 0) -> Callable[[], None]:
        """Accepted, and without effect: the order of a body's statements does not bind the pass."""
        return lambda: None

    def stop(self) -> NoReturn:
        """End the body here: what stands below does not run, and no layer runs that nothing above needs.

        Inside an invoke, that invoke's body ends; the trace goes on with what stands after it.

        >>> from nnzoo import LanguageModel
        >>> model = LanguageModel("nnzoo/tiny-gpt2")
        >>> with model.trace("The capital of France is") as tracer:
        ...     hidden = model.transformer.h[1].output[0]
        ...     tracer.stop()
        ...     hidden[:] = 0
        >>> bool(hidden.any())
        True
        """
        self.check_running()
        self._check_no_tape("tracer.stop()")
        raise Stop

    def __getattr__(self, name: str) -> Any:
        raise absent("the tracer", name)
