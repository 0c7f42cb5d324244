"""The checks of one `nnzoo.debug()`: which runs there were, how large their axes, and what must hold in each."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from nnzoo.analysis.results import Axis, Result
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.hooks import HookPoint
from nnzoo.debugging.faults import is_sound, not_finite, wrong_dtype, wrong_rank, wrong_size

AXES = ("batch", "pos", "query", "key", "key_pos", "head", "kv_head", "d_head", "d_model", "d_mlp", "d_vocab")


@dataclass(eq=False)
class Run:
    """What is known of one pass: sizes by axis, with the hook point that had them first ("": the config)."""

    sizes: dict[str, tuple[int, str]] = field(default_factory=dict)
    dtype: tuple[torch.dtype, str] | None = None  # of the floating point values
    extra: int | None = 0  # leading axes beyond the declared; None: a module called by itself may have any
    points: dict[str, None] = field(default_factory=dict)  # in the order in which they came
    finite: str | None = None  # the last hook point that was
    tokens: Tensor | None = None

    @property
    def label(self) -> str:
        first, *_, last = [*self.points, *self.points]
        return first if first == last else f"{first} … {last}"

    def take(self, point: HookPoint, value: Tensor) -> None:
        """Check a value against the run so far. Raises HookShapeError."""
        self.points[point.name] = None
        if "_" not in point.axes.split():  # else the shape is not declared
            self._take_sizes(point, value)
        if value.is_floating_point() and not torch.is_autocast_enabled(value.device.type):
            self.dtype = self.dtype or (value.dtype, point.name)
            if value.dtype != self.dtype[0]:
                raise wrong_dtype(point, value, *self.dtype)
        if point.name == "hook_tokens":
            self.tokens = value

    def _take_sizes(self, point: HookPoint, value: Tensor) -> None:
        symbols = point.axes.split()
        if self.extra is None:
            self.extra = value.ndim - len(symbols)
        if value.ndim - len(symbols) != self.extra:
            raise wrong_rank(point, value)
        for symbol, size in zip(reversed(symbols), reversed(value.shape), strict=False):
            expected, where = self._expected(point, symbol, size)
            if size != expected:
                raise wrong_size(point, value, symbol, expected, where)

    def _expected(self, point: HookPoint, symbol: str, size: int) -> tuple[int, str]:
        if symbol.isdigit():
            return int(symbol), ""
        declared = point.sizes.get(symbol)
        return self.sizes.setdefault(symbol, (size, point.name) if declared is None else (declared, ""))

    def agrees(self, other: "Run") -> bool:
        """Whether two runs may be parts of one."""
        sizes = {name: size for name, (size, _) in other.sizes.items()}
        same = all(sizes.get(name, size) == size for name, (size, _) in self.sizes.items())
        return same and not self.extra and not self.points.keys() & other.points.keys()

    def join(self, other: "Run") -> None:
        """Take a part in."""
        self.sizes = {**other.sizes, **self.sizes}
        self.points.update(other.points)
        self.finite = other.finite


@dataclass(eq=False)
class Scene:
    """Where a thread of execution is: the modules that are running, and the run that they are part of.

    What a hook calls is a scene of its own.
    """

    modules: list[nn.Module] = field(default_factory=list)
    run: Run | None = None
    apart: Run | None = None  # of a module that is called by itself, outside of a pass

    @property
    def is_whole(self) -> bool:
        """Whether a whole model was called: then all until its end is one run."""
        return bool(self.modules) and isinstance(self.modules[0], HookedModel)


@dataclass(frozen=True, eq=False, repr=False)
class SizeTable(Result):
    """Sizes of axes by run; empty where a run has no such axis."""

    def cell(self, index: tuple[int, ...]) -> str:
        size = self.values[index].item()
        return "" if math.isnan(size) else str(int(size))


class Checks:
    """What a `nnzoo.debug()` has seen: `print(checks)` shows a column for each run with the sizes of its axes.

    A run is a pass of a model; of a generation, each step. `runs` has them one by one, `sizes` is the table.
    """

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.n_checked = 0

    @property
    def sizes(self) -> SizeTable:
        """The size of each axis in each run: [axis run]."""
        found = dict.fromkeys(name for run in self.runs for name in run.sizes)
        names = [*(name for name in AXES if name in found), *(name for name in found if name not in AXES)]
        rows = [[run.sizes.get(name, (math.nan, ""))[0] for run in self.runs] for name in names]
        values: Shaped[Tensor, "axis run"] = torch.tensor(rows, dtype=torch.float64).view(len(names), len(self.runs))
        axes = (Axis("axis", tuple(names)), Axis("run", tuple(map(str, range(len(self.runs))))))
        return SizeTable("axes by run", "size", values, axes)

    @property
    def summary(self) -> str:
        dtypes = sorted({str(run.dtype[0]).removeprefix("torch.") for run in self.runs if run.dtype})
        what = f", {' and '.join(dtypes)}" if dtypes else ""
        return f"{self.n_checked} values checked in {len(self.runs)} runs{what}: shapes, dtypes, finite numbers"

    def __str__(self) -> str:
        return f"{self.summary}\n{self.sizes}" if self.runs else "no hook point was reached"

    def __repr__(self) -> str:
        return f"Checks({self.summary})"

    def _repr_html_(self) -> str:
        return f"<p>{self.summary}</p>{self.sizes._repr_html_()}" if self.runs else str(self)

    # --- one value -----------------------------------------------------------------------------------------------

    def check(self, scene: Scene, point: HookPoint, value: Tensor, *, put_back: bool = False) -> None:
        """Check what stands at a hook point. Raises HookShapeError or NonFiniteError."""
        run = self._run(scene, point)
        run.take(point, value)
        self.n_checked += not put_back
        if is_sound(point, value):
            run.finite = point.name
            return
        before = run.finite or (scene.run.finite if scene.run is not None else None)
        module, tokens = scene.modules[-1] if scene.modules else None, None if scene.run is None else scene.run.tokens
        raise not_finite(point, value, before=before, put_back=put_back, module=module, tokens=tokens)

    def _run(self, scene: Scene, point: HookPoint) -> Run:
        if scene.apart is not None:
            return scene.apart
        seen_before = scene.run is not None and point.name in scene.run.points and not scene.is_whole
        if scene.run is None or (seen_before and next(reversed(scene.run.points)) != point.name):
            self._open(scene)
        assert scene.run is not None
        return scene.run

    def _open(self, scene: Scene) -> None:
        scene.run = Run()
        self.runs.append(scene.run)

    def enter(self, scene: Scene, module: nn.Module) -> None:
        """A module begins."""
        if not scene.modules:
            if isinstance(module, HookedModel):
                self._open(scene)
            elif not hasattr(module, "hook_resid_pre"):  # blocks are called one by one by whoever walks through a model
                scene.apart = Run(extra=None)
        scene.modules.append(module)

    def leave(self, scene: Scene, module: nn.Module) -> None:
        """A module ends, with or without an error."""
        while scene.modules and scene.modules.pop() is not module:
            pass  # those inside it have ended with it
        if scene.modules:
            return
        if isinstance(module, HookedModel):
            scene.run = None
        elif scene.apart is not None:
            if scene.run is not None and scene.apart.agrees(scene.run):
                scene.run.join(scene.apart)
            elif scene.run is None and scene.apart.points and not scene.apart.extra:
                self.runs.append(scene.apart)
            scene.apart = None
