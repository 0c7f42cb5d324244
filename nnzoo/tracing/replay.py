"""A program recorded again on a model: what it needs of which pass, and what shares memory, is found out anew.

So a stored graph is believed in nothing: shapes, dtypes, places and the order of passes are checked as if a body were
running, and a call may edit what its entry says and nothing else, no weight of the model least of all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from nnzoo.generation import Decoder, Options, options_for
from nnzoo.tracing.arguments import name_of, operands
from nnzoo.tracing.call_checks import MOST_PARTS, check_arguments, check_edits, metas_of
from nnzoo.tracing.entries import FIELDS, Entry, Meta, Parameter, Program, PromptEntry, Ref, about
from nnzoo.tracing.execution import Execution
from nnzoo.tracing.functions import GraphError, ModuleCall, decode_function
from nnzoo.tracing.gradients import Backward, Flowing, Gradients, at_the_end
from nnzoo.tracing.graph import END, Call, Chosen, Given, Invoke, Line, Node, Pick, Result, Stage
from nnzoo.tracing.graph_plan import values_of
from nnzoo.tracing.infer import UNKNOWN, Answer, NeedsValues, infer
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.modes import Modes, restored
from nnzoo.tracing.places import Places, View
from nnzoo.tracing.recorder import Recorder
from nnzoo.tracing.stored_tensors import weight_of
from nnzoo.tracing.wholes import stack_ids

MOST_ROWS = 65_536  # of a prompt, with all sequences that are generated from it
MOST_ELEMENTS = 2**40  # of a value
_TAKES_APART = set("unbind split split_with_sizes chunk tensor_split hsplit vsplit dsplit __reversed__".split())
_DIFFERENTIATE = {"outputs", "inputs", "grad_outputs", "retain_graph", "create_graph", "allow_unused"}
_DIFFERENTIATE |= {"only_inputs", "is_grads_batched", "materialize_grads"}


class OtherModelError(GraphError):
    """A graph of another model than the one it is to run on."""


@dataclass
class Replayed:
    """A program on a model, ready to run."""

    recorder: Recorder
    execution: Execution
    invokes: list[Invoke]
    grad: bool
    answers: dict[Node, Answer]  # what each call gives, as far as shapes tell


def replay(program: Program, model: Any) -> Replayed:
    """Record a program on a model. Raises GraphError with the node where it does not fit."""
    _check_model(program.about, about(model))
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        return _Replay(program, model).all()


def _check_model(asked: dict[str, Any], here: dict[str, Any]) -> None:
    for name in ("kind", "n_layers", "d_model", "d_vocab", "dtype"):
        if asked.get(name) != here[name]:
            raise OtherModelError(
                f"the graph is of a model whose {name} is {asked.get(name)!r:.40}, not {here[name]!r}"
            )


class _Replay:
    def __init__(self, program: Program, model: Any) -> None:
        self._program, self._model = program, model
        shapes = model.facts.shapes
        self._execution = Execution(model, shapes, program.max_batch)
        self._recorder = Recorder(model.device, model.order, self._execution.look)
        self._recorder.modes = program.modes._replace(device_type=model.device.type)
        self._recorder.needs_grad = program.needs_grad
        self._gradients = Gradients(self._recorder)
        self._places = Places(self._recorder, shapes)
        self._invokes: list[Invoke] = []
        self._answers: dict[Node, Answer] = {}
        self._patterns = {value.view for module in model.paths.values() for value in values_of(module)}
        self._weights: dict[int, Tensor] = {}  # the model's own, by their ids

    @property
    def _nodes(self) -> list[Node]:
        return self._recorder.nodes

    def all(self) -> Replayed:
        """Every prompt and every node."""
        for number, prompt in enumerate(self._program.prompts):
            self._guarded(f"prompt {number}", None, partial(self._invoke, prompt))
        for number, entry in enumerate(self._program.entries):
            where = f"%{number} ({entry.kind}), recorded at {entry.line}"
            self._guarded(where, entry.line, partial(self._add, number, entry))
        for number, entry in enumerate(self._program.entries):
            if entry.kind == "backward":
                body = self._nodes[number + 1 : entry.end]
                self._nodes[number].inside = [one for one in body if not isinstance(one, Given)]  # type: ignore[attr-defined]
        recorder = self._recorder
        recorder.saved = {self._nodes[n] for n in self._program.saved}
        recorder.differentiated = {self._nodes[n] for n in self._program.kept_gradients}
        self._guarded("the graph", None, self._gradients.check_complete)
        recorder.roots = sorted(recorder.saved, key=lambda node: node.index)
        return Replayed(recorder, self._execution, self._invokes, self._program.grad, self._answers)

    @staticmethod
    def _guarded(where: str, line: Line | None, do: Callable[[], None]) -> None:
        try:
            do()
        except Exception as error:  # whatever PyTorch says of arguments that may be anything
            said = GraphError(f"{where}: {error}")
            said.line = line
            raise said from error

    # --- prompts -------------------------------------------------------------------------------------------------

    def _invoke(self, prompt: PromptEntry) -> None:
        device, d_vocab = self._model.device, self._model.config.d_vocab
        tokens = prompt.tokens.to(device)
        if int(tokens.min()) < 0 or int(tokens.max()) >= d_vocab:
            raise GraphError(f"ids are 0 to {d_vocab - 1}")
        most = self._model.skeleton.max_tokens
        if most is not None and tokens.shape[1] > most:
            raise GraphError(f"a prompt of {tokens.shape[1]} tokens; the model takes {most}")
        mask = None if prompt.attention_mask is None else prompt.attention_mask.to(device)
        labels = None if prompt.labels is None else prompt.labels.to(device)
        invoke = Invoke(len(self._invokes), tokens, mask, labels, last_only=prompt.last_only)
        if prompt.options is not None:
            invoke.decoder = self._decoder(prompt, tokens, mask)
            invoke.tokens, invoke.attention_mask = invoke.decoder.tokens, invoke.decoder.attention_mask
        self._invokes.append(invoke)

    def _decoder(self, prompt: PromptEntry, tokens: Tensor, mask: Tensor | None) -> Decoder:
        if len(tokens) * _whole((prompt.options or {}).get("num_return_sequences", 1)) > MOST_ROWS:
            raise GraphError(f"more than {MOST_ROWS} sequences of one prompt")
        options = options_for(self._model.skeleton, tokens, mask, dict(prompt.options or {}), {})
        if options != Options(**(prompt.options or {})):
            raise GraphError("its options are not as a generation settles them")
        generator = None
        if options.do_sample and options.seed is None:
            if prompt.generator is None:
                raise GraphError("it samples, and has neither a seed nor a state of random numbers")
            generator = torch.Generator("cpu" if len(prompt.generator) > 16 else self._model.device)
            generator.set_state(prompt.generator)
        tokenizer = self._model.tokenizer if options.stop_strings else None
        return Decoder(options, tokens, mask, tokenizer=tokenizer, generator=generator)

    # --- nodes ---------------------------------------------------------------------------------------------------

    def _add(self, number: int, entry: Entry) -> None:
        getattr(self, f"_{entry.kind}")(**{name: getattr(entry, name) for name in FIELDS[entry.kind]})
        if len(self._nodes) != number + 1:
            raise GraphError("it is no node of its own")
        node = self._nodes[number]
        node.line = entry.line
        meta = None if node.meta is None else Meta(tuple(node.meta.shape), node.meta.dtype)
        if meta != entry.meta:
            raise GraphError(f"it is {meta or 'of unknown shape'} here, and {entry.meta or 'of unknown shape'} there")

    def _at(self, invoke: int, step: int) -> Invoke:
        found = self._invokes[invoke]
        most = 1 if found.decoder is None else found.decoder.options.max_new_tokens
        if step >= most:
            raise GraphError(f"step {step}: invoke {invoke} has {most}")
        return found

    def _arrive(self, invoke: int, hook: str, step: int) -> None:
        if hook not in self._recorder.order:
            raise GraphError(f"the model has no hook point {hook!r:.80}")
        self._places._place(self._at(invoke, step), hook, step)

    def _result(self, invoke: int) -> None:
        found = self._invokes[invoke]
        if found.decoder is None:
            raise GraphError(f"invoke {invoke} generates nothing")
        meta = None
        if not found.decoder.may_end_early:
            total = found.n_pos + found.decoder.options.max_new_tokens
            meta = torch.empty(found.rows, total, dtype=torch.long, device="meta")
        self._recorder.add(Result, (), needs={found: END}, meta=meta, invoke=found)

    def _chosen(self, invoke: int, step: int) -> None:
        found = self._at(invoke, step)
        if found.decoder is None:
            raise GraphError(f"invoke {invoke} generates nothing")
        self._recorder.add(Chosen, (), needs={found: Stage(step, len(self._recorder.order))}, invoke=found)

    def _put(self, invoke: int, hook: str, step: int, of: int) -> None:
        place, source = self._at(invoke, step).places.get((hook, step)), self._value(of)
        if place is None:
            raise GraphError(f"{hook!r:.80} is set and was never read")
        if source.storage.place not in (None, place) or source.storage.written is not None:
            raise GraphError(f"{hook} is set to the memory of another place; a clone of it has none")
        self._places._check_fits(source.meta, place.current.meta, hook)
        self._places._put(place, source)

    def _pick(self, of: int, which: int) -> None:
        call = self._nodes[of]
        answer = self._answers.get(call, UNKNOWN)
        if which >= len(answer.leaves):
            raise GraphError(f"%{of} gives {len(answer.leaves)} tensors, and no number {which}")
        alias, meta = answer.aliases[which], answer.leaves[which]
        storage = None if alias is None else call.inputs[alias].storage
        self._recorder.add(Pick, (call,), meta=meta, which=which, storage=storage)

    def _value(self, number: int) -> Node:
        node = self._nodes[number]
        if node.meta is None:
            raise GraphError(f"%{number} is no single tensor of a known shape")
        return node

    def _lazy(self, number: int) -> LazyTensor:
        return LazyTensor(self._value(number), self._recorder)

    # --- gradients -----------------------------------------------------------------------------------------------

    def _backward(self, args: tuple, retain_graph: bool, create_graph: bool, end: int) -> None:
        if not 1 <= len(args) <= 2 or not all(isinstance(one, Ref) for one in args):
            raise GraphError("a backward pass is of a loss, and of its gradient if that is given")
        loss, gradient = [*(self._lazy(one.number) for one in args), None][:2]
        if gradient is not None and gradient.shape != loss.shape:  # type: ignore[union-attr]
            raise GraphError("the gradient has not the shape of the loss")
        options = {"gradient": gradient, "retain_graph": retain_graph, "create_graph": create_graph}
        self._gradients._backward(torch.Tensor.backward, (loss,), options)

    def _gradient(self, of: int) -> None:
        self._gradients._gradient_of(self._lazy(of))

    def _flowing(self, of: int, by: int) -> None:
        backward = self._nodes[by]
        if not isinstance(backward, Backward) or len(self._nodes) >= self._program.entries[by].end:
            raise GraphError(f"%{by} is no backward pass whose body it stands in")
        self._gradients._flowing(self._value(of), backward)

    def _put_gradient(self, of: int, by: int) -> None:
        flowing, source = self._nodes[by], self._value(of)
        if not isinstance(flowing, Flowing):
            raise GraphError(f"%{by} is no gradient that flows by")
        (backward,) = [one for one in flowing.after if isinstance(one, Backward)]
        if len(self._nodes) >= self._program.entries[backward.index].end or source is backward.current(flowing):
            raise GraphError("a gradient is set inside its backward pass's body, to another value")
        if source.meta.shape != flowing.meta.shape:
            raise GraphError(f"a gradient {list(flowing.meta.shape)} cannot be set to {list(source.meta.shape)}")
        self._gradients._flow_on(backward, flowing, source)

    # --- calls ---------------------------------------------------------------------------------------------------

    def _call(
        self,
        fn: Any,
        args: tuple,
        kwargs: dict,
        edits: int | None,
        random: Tensor | None,
        modes: Modes | None,
        hook: str | None,
        view: str | None,
    ) -> None:
        if isinstance(fn, ModuleCall):
            fn = decode_function(f"model:{fn.path}", self._model)
        args, kwargs = self._filled(args), self._filled(kwargs)
        if fn is torch.autograd.grad:
            self._differentiate(args, kwargs)
            return
        nodes, _ = operands((args, kwargs))
        if not nodes and fn is not torch.clone:
            raise GraphError("it uses no value of the trace")
        if name_of(fn) == "data" and self._program.needs_grad:
            fn = torch.Tensor.detach  # which tells autograd of edits: what it has kept may be indices
        modes = None if modes is None else modes._replace(device_type=self._recorder.device.type)
        target = None if edits is None else self._nodes[edits]
        with restored(modes or self._recorder.modes):
            answer = self._answer(fn, args, kwargs, nodes, target)
        node = self._recorder.call(fn, args, kwargs, answer, edits=target, random=random)
        node.modes, node.hook = modes, hook
        node.view = None if view is None else self._view(node, view)
        self._answers[node] = answer

    def _view(self, node: Node, pattern: str) -> View:
        place = node.storage.place
        if place is None or pattern not in self._patterns:
            raise GraphError(f"{pattern!r:.80} is no arrangement of a place's value")
        arrived = place.arrived.meta
        if node.meta is None or rearrange(arrived, pattern).shape != node.meta.shape:
            raise GraphError(f"{pattern!r:.80} gives another shape")
        return View(pattern, arrived.shape)

    def _filled(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return self._nodes[value.number]
        if isinstance(value, Parameter):
            weight = weight_of(self._model._model, value)
            self._weights[id(weight)] = weight
            return weight
        if isinstance(value, (tuple, list)):
            parts = [self._filled(part) for part in value]
            return type(value)(parts)
        if isinstance(value, dict):
            return {key: self._filled(part) for key, part in value.items()}
        if isinstance(value, slice):
            return slice(*(self._filled(part) for part in (value.start, value.stop, value.step)))
        return value

    def _answer(self, fn: Callable, args: tuple, kwargs: dict, nodes: tuple[Node, ...], target: Node | None) -> Answer:
        on_meta: Any = getattr(fn, "shapes", None) or self._recorder._moves.get(name_of(fn), fn)
        if target is not None and not any(target is one for one in nodes):
            raise GraphError("it edits what it does not use")
        if any(one.meta is None for one in nodes):
            if fn is stack_ids:
                _check_lengths(args, kwargs, nodes)
                return UNKNOWN
            return self._unknown(fn, args, kwargs, target)
        if name_of(fn) in _TAKES_APART and any(size > MOST_PARTS for one in nodes for size in one.meta.shape):
            raise GraphError(f"a value with more than {MOST_PARTS} parts is taken apart")
        try:
            check_arguments(fn, metas_of(args), metas_of(kwargs))
            check_edits(on_meta, args, kwargs, target, self._weights)
            metas = [one.meta for one in nodes]
            answer = infer(on_meta, metas_of(args), metas_of(kwargs), metas, self._recorder.device)
        except NeedsValues:
            return self._unknown(fn, args, kwargs, target)
        if not answer.leaves and target is None:
            raise GraphError("it gives no tensor")
        if any(leaf.numel() > MOST_ELEMENTS for leaf in answer.leaves):
            raise GraphError("it gives a tensor that no memory holds")
        return answer

    @staticmethod
    def _unknown(fn: Callable, args: tuple, kwargs: dict, target: Node | None) -> Answer:
        """Of a call that numbers decide: PyTorch's methods that edit edit their first argument alone."""
        name = name_of(fn)
        is_edit = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        is_own = is_edit and getattr(torch.Tensor, name, None) is fn and operands(kwargs) == ((), [])
        if target is None or not args or args[0] is not target or not is_own:
            raise GraphError("it needs numbers, which are there only when the model runs")
        return UNKNOWN

    def _differentiate(self, args: tuple, kwargs: dict) -> None:
        inputs, outputs = kwargs.get("inputs"), kwargs.get("outputs")
        inputs = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
        outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        known = [isinstance(one, Node) and one.meta is not None for one in (*inputs, *outputs)]
        if args or set(kwargs) - _DIFFERENTIATE or not inputs or not outputs or not all(known):
            raise GraphError("torch.autograd.grad is of outputs and inputs that the trace knows")
        metas = tuple(one.meta for one in inputs)
        answer = Answer(metas, metas, (None,) * len(metas))
        node: Call = self._recorder.call(torch.autograd.grad, (), kwargs, answer)
        node.needs = at_the_end(node.needs)
        node.differentiates = tuple(inputs)
        self._recorder.needs_grad = True
        self._answers[node] = answer


def _check_lengths(args: tuple, kwargs: dict, ids: tuple[Node, ...]) -> None:
    """Of generated ids as one batch: those of prompts, with the lengths that these have."""
    n_pos = [one.invoke.n_pos for one in ids if isinstance(one, Result) and one.invoke is not None]
    if kwargs or len(n_pos) < len(ids) or args[2:] != ids or list(args[0]) != n_pos:
        raise GraphError("the ids of a batch are those of its prompts, with their lengths")


def _whole(number: Any) -> int:
    if not isinstance(number, int) or number < 1:
        raise GraphError(f"{number!r:.40} is no number of sequences")
    return number
