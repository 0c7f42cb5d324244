"""Patching every residual vector of a prompt, and every head: a sweep, a run for each patch, and the others' time."""

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

from benchmarks.folders import Size
from benchmarks.measure import alternate, timed
from benchmarks.models import Pair
from benchmarks.peers import jobs_of, values_of
from benchmarks.report import Row, ratio_row
from benchmarks.setup import Setup
from nnzoo.analysis import patch_activations

SUBJECT = "Patching all layers and positions, and all heads"
POSITIONS = 16
TARGETS = {"one run a patch": 0.25, "nnsight's": 0.2, "TransformerLens's": 0.2}
TOLERANCE = 1e-2  # of how much the numbers of a sweep differ among themselves: float32
KINDS = {"patching": ("resid_pre", "positions"), "patching of heads": ("z", "heads")}

Where = tuple[slice | int, ...]


def rows(size: Size, setup: Setup) -> Iterator[Row]:
    """Against the runs one by one, with our own hooks, and with the others'. Raises ValueError where numbers differ."""
    for kind in KINDS:
        yield from _rows(kind, Pair(size, setup), setup.at_most(2))


def _rows(kind: str, pair: Pair, setup: Setup) -> Iterator[Row]:
    (at, places), size, shape = KINDS[kind], pair.size, (1, POSITIONS)
    corrupted = pair.tokens(*shape)
    clean = corrupted.roll(1)

    def ours() -> Tensor:
        return patch_activations(pair.ours, corrupted, clean, (1, 2), at=at).values

    by_hand = torch.no_grad()(partial(one_by_one, pair, corrupted, clean, at))
    if setup.dtype == torch.float32:
        agree(ours(), {"one run a patch": by_hand(), **values_of(setup.peers, kind, size, pair.folder, shape)})
    jobs = {"nnzoo": timed(ours), "one run a patch": timed(by_hand)}
    turns = alternate(jobs | jobs_of(setup.peers, kind, size, pair.folder, shape), setup.effort)
    work = f"{size.name}, {size.n_layers} layers x {POSITIONS if at == 'resid_pre' else size.n_heads} {places}"
    targets = TARGETS if size.n_layers >= 12 else {}
    for other in list(turns.seconds)[1:]:
        target = next((share for name, share in targets.items() if other.startswith(name)), None)
        yield ratio_row(SUBJECT, work, turns, other, target)


def agree(ours: Tensor, others: dict[str, Tensor]) -> None:
    """Raise ValueError unless others give our numbers, in whatever shape."""
    for name, values in others.items():
        error = (ours.cpu().flatten() - values.cpu().flatten()).abs().max() / ours.std()
        if not error < TOLERANCE:
            raise ValueError(f"{name} gives other numbers than the sweep: off by {error:.2g} of their spread")


def one_by_one(pair: Pair, corrupted: Tensor, clean: Tensor, at: str) -> Tensor:
    """The same numbers, each from a run of the whole model with a hook."""
    model, found = pair.ours, []
    name = "blocks.{}.hook_resid_pre" if at == "resid_pre" else "blocks.{}.attn.hook_z"
    _, cache = model.run_with_cache(clean, names_filter=name.format("*"))
    places: list[Where] = [(slice(None), i) for i in range(POSITIONS)]
    if at == "z":
        places = [(slice(None), slice(None), i) for i in range(pair.size.n_heads)]
    for layer, where in product(range(pair.size.n_layers), places):

        def put(value: Tensor, hook: object, point: str = name.format(layer), where: Where = where) -> None:
            value[where] = cache[point][where]

        logits = model.run_with_hooks(corrupted, fwd_hooks=[(name.format(layer), put)])
        found.append((logits[:, -1, 1] - logits[:, -1, 2]).mean())
    return torch.stack(found).view(pair.size.n_layers, -1)
