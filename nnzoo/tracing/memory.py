"""How much memory a recorded program will hold, found out from shapes, before any of it runs."""

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor

from nnzoo.tracing.graph import Call, Node, Storage
from nnzoo.tracing.plan import plan
from nnzoo.tracing.recorder import Recorder


def memory_of(meta: Tensor) -> int:
    """Bytes of the memory behind a shape: what is expanded is there once.

    >>> import torch
    >>> memory_of(torch.empty(3, 1, device="meta").expand(3, 100))
    12
    """
    elements = 1
    for size, stride in zip(meta.shape, meta.stride(), strict=True):
        elements *= size if stride or not size else 1
    return elements * meta.itemsize


def in_order(recorder: Recorder, max_batch: int | None = None) -> list[Node]:
    """The nodes that will run, in the order in which they will."""
    planned = plan([*recorder.roots, *recorder.effects], recorder.puts, max_batch)
    assert planned is not None, "a recorder refuses what no order of passes gives"
    stages = [one.stages[stage] for one in planned.passes for stage in sorted(one.stages)]
    return [*planned.before, *(node for nodes in stages for node in nodes)]


def peak_memory(recorder: Recorder, results: Mapping[Node, Sequence[Tensor]]) -> int:
    """The most bytes that values hold at once, those of calls that give several tensors by their `results`.

    With gradients everything stays until the end. What an edit makes its earlier readers keep counts all the time.
    """
    nodes = in_order(recorder)
    uses = Counter(one for node in nodes for one in node.inputs)
    uses.update(recorder.roots)
    users: Counter[Storage] = Counter()  # nodes of a storage whose values are still needed
    held: dict[Storage, int] = {}
    total = peak = _kept_for_readers(nodes, every=recorder.needs_grad)
    for node in nodes:
        size = max(_size(node, results), held.get(node.storage, 0))
        total += size - held.get(node.storage, 0)
        held[node.storage] = size
        peak = max(peak, total)
        if recorder.needs_grad:
            continue
        users[node.storage] += uses[node] > 0
        for one in node.inputs:
            uses[one] -= 1
            users[one.storage] -= not uses[one]
        for storage in {one.storage for one in (*node.inputs, node)}:
            if not users[storage]:
                total -= held.pop(storage, 0)
    return peak


def _size(node: Node, results: Mapping[Node, Sequence[Tensor]]) -> int:
    return memory_of(node.meta) if node.meta is not None else sum(map(memory_of, results.get(node, ())))


def _kept_for_readers(nodes: Sequence[Node], *, every: bool) -> int:
    """Bytes of the copies that edits make for readers which were recorded before them and run after them.

    With gradients `every` earlier reader has one.
    """
    at = {node: position for position, node in enumerate(nodes)}
    copies: dict[tuple[Node, Node], int] = {}
    for storage in {node.storage for node in nodes if isinstance(node, Call) and node.writes}:
        later = [write for write in storage.writes if write in at]
        first: Node | None = None  # of the writes recorded after a reader, that which runs first
        for reader in sorted((one for one in storage.readers if one in at), key=lambda one: -one.index):
            while later and later[-1].index > reader.index:
                write = later.pop()
                first = write if first is None or at[write] < at[first] else first
            if first is not None and (every or at[first] < at[reader]):
                for one in reader.inputs:
                    if one.storage is storage and one.meta is not None:
                        copies[first, one] = memory_of(one.meta)
    return sum(copies.values())
