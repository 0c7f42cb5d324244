"""Rows of results, and the page that they make."""

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import torch

from benchmarks.measure import Comparison

HEAD = """# Results

Written by `python -m benchmarks.run`. Times are medians; a ratio is the median over rounds in which both took turns,
ours by the other's: below 1 is faster. What was tried and did not help is in [NOTES.md](NOTES.md).
"""


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    subject: str
    work: str
    ours: str
    other: str  # who, and its figure
    figure: str = ""
    target: str = ""
    met: bool | None = None  # None: a figure without a target

    def __str__(self) -> str:
        verdict = {True: "yes", False: "**no**", None: ""}[self.met]
        return f"| {self.work} | {self.ours} | {self.other} | {self.figure} | {self.target} | {verdict} |"


def ratio_row(
    subject: str, work: str, turns: Comparison, other: str, target: float | None = None, ours: str = "nnzoo"
) -> Row:
    """Our time by another's, which should be at most `target`."""
    said = show(turns.median(ours)), f"{other} {show(turns.median(other))}"
    return beside_row(subject, work, *said, turns.ratio(ours, other), target)


def beside_row(subject: str, work: str, ours: str, other: str, ratio: float, target: float | None = None) -> Row:
    """A figure beside another one, and their ratio, which should be at most `target`."""
    bound, met = ("", None) if target is None else (f"<= {target:g}x", ratio <= target)
    return Row(subject, work, ours, other, f"{ratio:.2f}x", bound, met)


def bound_row(subject: str, work: str, ours: float, bound: float, unit: str, other: str = "") -> Row:
    """A figure that should be at most `bound`, both in `unit`."""
    return Row(subject, work, f"{ours:.3g} {unit}", other, "", f"<= {bound:g} {unit}", ours <= bound)


def plain_row(subject: str, work: str, ours: float, other: str, ratio: float, target: float | None = None) -> Row:
    """A figure in MiB beside another one."""
    return beside_row(subject, work, f"{ours:.3g} MiB", other, ratio, target)


def show(seconds: float) -> str:
    """A duration in the unit that suits it.

    >>> show(0.0123), show(1.5), show(0.00004)
    ('12.3 ms', '1.5 s', '40 us')
    """
    for unit, factor in (("s", 1), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def page(rows: Iterable[Row], dtype: str, picture: Path | None = None) -> str:
    """The whole page, a table for each subject, and a picture at its end."""
    tables = [HEAD, machine(dtype)]
    for subject, group in groupby(rows, key=lambda row: row.subject):
        lines = [f"## {subject}", "", "| work | nnzoo | other | ratio | target | met |", "|---|---|---|---|---|---|"]
        tables.append("\n".join([*lines, *map(str, group)]) + "\n")
    if picture is not None:
        tables.append(f"![time against size, both axes logarithmic]({picture.name})\n")
    return "\n".join(tables)


def machine(dtype: str) -> str:
    """What the figures were measured on."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return (
        f"{_processor()}, {torch.get_num_threads()} threads, {dtype}. Python {platform.python_version()}, {versions}.\n"
    )


def _processor() -> str:
    if torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
