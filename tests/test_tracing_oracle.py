"""Random bodies against an oracle that knows nothing of graphs.

The oracle runs the body as plain PyTorch on the values that arrived at each place, in program order, gives the model
what then stands at the places, and repeats this until the values that arrive no longer change: one pass, one truth.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from families import PLAIN, folder, ids, ours, prompt
from nnzoo import LanguageModel
from nnzoo.tracing.recorder import TraceError

PLACES = [
    "hook_embed",
    "blocks.0.hook_resid_pre",
    "blocks.0.hook_attn_out",
    "blocks.0.hook_resid_mid",
    "blocks.0.hook_resid_post",
    "blocks.1.hook_resid_pre",
    "blocks.1.ln1.hook_in",
    "blocks.1.ln1.hook_out",
    "blocks.1.hook_mlp_out",
    "blocks.1.hook_resid_post",
    "blocks.2.hook_resid_mid",
    "blocks.2.hook_resid_post",
    "ln_final.hook_out",
]
LAST = "unembed.hook_out"


@dataclass
class Body:
    """A list of statements, and how to run them on any kind of tensor."""

    statements: list[tuple] = field(default_factory=list)

    def run(self, read: Callable[[str], Tensor], put: Callable[[str, Tensor], None]) -> list[Tensor]:
        """Every variable of the body, in the order of their making."""
        variables: list[Tensor] = []
        for kind, *operands in self.statements:
            if kind == "read":
                variables.append(read(operands[0]))
            elif kind == "put":
                put(operands[0], variables[operands[1]])
            else:
                made = OPERATIONS[kind](*(variables[i] for i in operands))
                if made is not None:
                    variables.append(made)
        return variables


def _zero_first(x: Tensor) -> None:
    x[:, 0] = 0


def _add_in_place(x: Tensor, y: Tensor) -> None:
    x += 0.5 * y


def _scale_in_place(x: Tensor) -> None:
    x.mul_(1.5)


def _set_row(x: Tensor, y: Tensor) -> None:
    x[:, -1] = y[:, 0]


OPERATIONS: dict[str, Callable] = {
    "clone": lambda x: x.clone(),
    "double": lambda x: 2 * x,
    "add": lambda x, y: x + y,
    "twice": lambda x, y: torch.addcmul(y, x, 0.01 * x) + x,
    "tail": lambda x: x[:, 1:],  # a view: edits of one are seen by the other
    "whole_from_tail": lambda x: torch.cat([x[:, :1], x[:, 1:] * 0.9], dim=1),
    "transposed": lambda x: x.transpose(0, 1).transpose(0, 1),
    "zero_first": _zero_first,
    "scale": _scale_in_place,
    "add_to": _add_in_place,
    "set_row": _set_row,
}
ARITY = {"add": 2, "twice": 2, "add_to": 2, "set_row": 2}
MAKES = {"clone", "double", "add", "twice", "tail", "whole_from_tail", "transposed"}


@st.composite
def bodies(draw: st.DrawFn) -> Body:
    body = Body()
    whole: list[bool] = []  # of each variable: does it have all positions?
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["read", "read", "put", *OPERATIONS]))
        if kind == "read":
            body.statements.append(("read", draw(st.sampled_from(PLACES))))
            whole.append(True)
            continue
        if not whole:
            continue
        operands = [draw(st.integers(0, len(whole) - 1)) for _ in range(ARITY.get(kind, 1))]
        if kind == "put":
            if whole[operands[0]]:
                body.statements.append(("put", draw(st.sampled_from(PLACES)), operands[0]))
            continue
        if not all(whole[i] for i in operands):
            continue
        body.statements.append((kind, *operands))
        if kind in MAKES:
            whole.append(kind != "tail")
    return body


def oracle(model: torch.nn.Module, tokens: Tensor, body: Body) -> list[Tensor]:
    """The variables of the body, and the logits, at the fixed point."""
    arrived = _arrivals(model, tokens, {})
    for _ in range(len(PLACES) + 2):
        standing = {place: value.clone() for place, value in arrived.items()}
        own = {value.untyped_storage().data_ptr(): place for place, value in standing.items()}
        keep = list(standing.values())

        def put(place: str, value: Tensor, standing: dict = standing, own: dict = own, keep: list = keep) -> None:
            if own.get(value.untyped_storage().data_ptr(), place) != place:
                value = value.clone()  # two places do not share memory
            keep.append(value)
            own[value.untyped_storage().data_ptr()] = place
            standing[place] = value

        variables = body.run(standing.__getitem__, put)
        after = _arrivals(model, tokens, standing)
        if all(torch.equal(after[place], arrived[place]) for place in arrived):
            return [*variables, after[LAST]]
        arrived = after
    raise AssertionError("no fixed point: the body sets a place from a later one")


def _arrivals(model: torch.nn.Module, tokens: Tensor, standing: dict[str, Tensor]) -> dict[str, Tensor]:
    arrived: dict[str, Tensor] = {}

    def pass_by(value: Tensor, hook: object) -> Tensor:
        arrived[hook.name] = value.clone()
        return standing.get(hook.name, value) if hook.name != LAST else value

    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=[(place, pass_by) for place in [*PLACES, LAST]])
    return arrived


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
    return {family: LanguageModel(folder(family, setting)) for family, setting in PLAIN}


@ids(PLAIN)
@settings(max_examples=60)
@given(body=bodies(), dropped=st.sets(st.integers(0, 11)))
def test_a_body_gives_what_the_oracle_gives(
    models: dict, family: str, setting: str, body: Body, dropped: set[int]
) -> None:
    tokens = prompt(2, 9)
    try:
        with models[family].trace(tokens) as tracer:
            variables = [*body.run(tracer.recorder.read, tracer.recorder.put), tracer.result]
            got = {i: value for i, value in enumerate(variables) if i not in dropped}
            del variables  # what nobody holds need not be computed, and is let go of early
    except TraceError:
        assume(False)  # that these errors come where no pass exists is tested by itself
    expected = oracle(ours(family, setting), tokens, body)
    for i, ours_value in got.items():
        value = expected[i]
        scale = value.abs().max().clamp(min=1)
        assert ours_value.shape == value.shape
        assert ((ours_value - value).abs().max() <= 1e-10 * scale).item(), body.statements
