"""Random bodies of traces over several prompts: what they are made of, and how one is run.

A program is run by a `World`: a trace, or the plain PyTorch of oracle.py, which says what it should give.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

WHOLE = -1  # the scope of an invoke without a prompt


@dataclass(frozen=True)
class Statement:
    """One line of a body; `a` and `b` name variables and places, modulo how many there are."""

    kind: str
    a: int = 0
    b: int = 0


@dataclass(frozen=True)
class Asked:
    """A prompt: tokens [rows pos] and where there is one its mask."""

    rows: int
    n_pos: int
    padding: str  # "", "left", "right"

    @property
    def tokens(self) -> Tensor:
        generator = torch.Generator().manual_seed(100 * self.rows + self.n_pos)
        return torch.randint(2, 97, (self.rows, self.n_pos), generator=generator)

    @property
    def mask(self) -> Tensor | None:
        if not self.padding or self.n_pos < 3:
            return None
        mask = torch.ones(self.rows, self.n_pos, dtype=torch.long)
        for row in range(self.rows):
            missing = (row + 1) % (self.n_pos - 1)
            if missing:
                mask[row, slice(0, missing) if self.padding == "left" else slice(-missing, None)] = 0
        return mask


@dataclass(frozen=True)
class Program:
    """Bodies, each in the scope of one of the prompts, to which later ones may come back, or of all before it."""

    prompts: tuple[Asked, ...]
    bodies: tuple[tuple[int, tuple[Statement, ...]], ...]

    def places(self, names: Sequence[str]) -> list[str]:
        """Those of the places that the bodies name, or may."""
        used = {names[n % len(names)] for _, body in self.bodies for s in body for n in used_by(s)}
        return [name for name in names if name in used]

    def text(self) -> str:
        lines = [f"prompts {self.prompts}"]
        for scope, body in self.bodies:
            lines.append(f"invoke({'' if scope == WHOLE else scope}):")
            lines += [f"    {s.kind} {s.a} {s.b}" for s in body]
        return "\n".join(lines)


def small(x: Tensor) -> Tensor:
    """A number that says something of all elements, of moderate size, whatever they are."""
    return torch.nan_to_num(x, nan=0.3, posinf=0.7, neginf=-0.7).clamp(-3, 3).mean()


def fits(x: Tensor, y: Tensor) -> Tensor:
    """`y`, where it has the shape of `x`, else a number made of it."""
    return y if tuple(x.shape) == tuple(y.shape) else small(y)


def _zero_first(x: Tensor, y: Tensor) -> None:
    x[:, 0] = 0.25


def _add_to(x: Tensor, y: Tensor) -> None:
    x += 0.5 * fits(x, y)


def _scale(x: Tensor, y: Tensor) -> None:
    x.mul_(1.5)


def _set_row(x: Tensor, y: Tensor) -> None:
    x[:, -1] = small(y)


def _set_masked(x: Tensor, y: Tensor) -> None:
    x[x > 0.5] = 0.5


def _copy_to(x: Tensor, y: Tensor) -> None:
    x.copy_(fits(x, y))


def _out(x: Tensor, y: Tensor) -> None:
    torch.mul(x, 0.75, out=x)


EDITS: dict[str, Callable] = {
    "zero_first": _zero_first, "add_to": _add_to, "scale": _scale, "set_row": _set_row, "set_masked": _set_masked,
    "copy_to": _copy_to, "out": _out,
}  # fmt: skip
MAKES: dict[str, Callable] = {
    "clone": lambda x, y: x.clone(),
    "sum": lambda x, y: x + 0.1 * fits(x, y),
    "square": lambda x, y: torch.addcmul(x, x, x, value=0.01),
    "tail": lambda x, y: x[:, 1:] if x.shape[1] > 1 else x[:, :1],  # a view: edits of one are seen by the other
    "rows": lambda x, y: x[-1:],
    "swapped": lambda x, y: x.transpose(0, 1).transpose(0, 1),
    "flat": lambda x, y: x.flatten(1)[..., None, None],
    "masked": lambda x, y: torch.where(x > 0, x, small(y)),
    "top": lambda x, y: x.topk(1, dim=-1).values * torch.ones_like(x),
    "half": lambda x, y: x.float().double(),
    "kept": lambda x, y: x,
}


def used_by(s: Statement) -> tuple[int, ...]:
    return (s.a, s.b) if s.kind == "put" else (s.a,)


class World:
    """What a body runs on: places of prompts that are read and set."""

    def read(self, place: str) -> Tensor:
        raise NotImplementedError

    def put(self, place: str, value: Tensor) -> None:
        raise NotImplementedError

    def scope(self, which: int) -> Any:
        raise NotImplementedError

    def look(self, value: Tensor) -> float:
        raise NotImplementedError

    def after(self) -> None:
        """A statement is over."""


def run(program: Program, places: Sequence[str], world: World, upto: int = 10**9) -> Iterator[tuple[int, list[Tensor]]]:
    """Run the body, giving the number of statements done and the variables after each."""
    variables: list[Tensor] = []
    done = 0
    for which, body in program.bodies:
        with world.scope(which):
            for s in body:
                if done >= upto:
                    return
                _step(s, places, world, variables)
                world.after()
                done += 1
                yield done, variables


def _step(s: Statement, places: Sequence[str], world: World, variables: list[Tensor]) -> None:
    if s.kind == "read" or not variables:
        variables.append(world.read(places[s.a % len(places)]))
        return
    x, y = variables[s.a % len(variables)], variables[s.b % len(variables)]
    if s.kind == "put":
        place = places[s.b % len(places)]
        here = world.read(place)
        world.put(place, x if tuple(x.shape) == tuple(here.shape) else here * 0.5 + small(x))
    elif s.kind == "look":
        variables.append(x * (0.5 if world.look(small(x)) > 0.1234 else 1.1))
    elif s.kind in EDITS:
        EDITS[s.kind](x, y)
    else:
        variables.append(MAKES[s.kind](x, y))


@st.composite
def programs(draw: st.DrawFn, n_statements: int = 10, looks: bool = True, wholes: bool = True) -> Program:
    prompts, bodies = [], []
    kinds = ["read", "read", "read", "put", "put", *EDITS, *MAKES] + (["look"] if looks else [])
    statements = st.builds(Statement, st.sampled_from(kinds), st.integers(0, 200), st.integers(0, 200))
    for n in range(draw(st.integers(1, 4))):
        prompts.append(
            Asked(draw(st.integers(1, 2)), draw(st.integers(1, 10)), draw(st.sampled_from(["", "", "left", "right"])))
        )
        bodies.append((n, tuple(draw(st.lists(statements, max_size=n_statements)))))
        for back in draw(st.lists(st.integers(0, n), max_size=2)) if n else ():
            bodies.append((back, tuple(draw(st.lists(statements, max_size=4)))))
        if wholes and draw(st.integers(0, 3)) == 3:
            bodies.append((WHOLE, tuple(draw(st.lists(statements, max_size=4)))))
    return Program(tuple(prompts), tuple(bodies))
