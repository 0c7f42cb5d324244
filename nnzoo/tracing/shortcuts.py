"""What of a pass nobody needs: blocks whose output is replaced, and logits of positions that nobody reads."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nnzoo.tracing.arguments import name_of
from nnzoo.tracing.graph import LOGITS, Arrive, Call, Invoke, Node, Put, Stage
from nnzoo.tracing.run import Run
from nnzoo.tracing.shapes import UNEMBED

if TYPE_CHECKING:
    from nnzoo.tracing.walk import Walk


def unneeded_blocks(walk: "Walk", stages: dict[Stage, list[Node]]) -> set[int]:
    """Blocks that need not run: nothing inside is asked for, and what they give is replaced, by themselves or above.

    What goes into a block is not inside it.
    """
    n_layers = len(walk.model.blocks)
    starts = [walk.order[f"blocks.{k}.hook_resid_pre"] for k in range(n_layers)]
    ends = [walk.order[f"blocks.{k}.hook_resid_post"] for k in range(n_layers)]
    orders = [stage.order for stage in stages if stage.step == walk.step]
    unneeded: set[int] = set()
    replaced = False
    for layer in reversed(range(n_layers)):
        inside = any(starts[layer] < order < ends[layer] for order in orders)
        replaced = not inside and _replaced_at(ends[layer], walk, stages, otherwise=replaced)
        if replaced:
            unneeded.add(layer)
        replaced = _replaced_at(starts[layer], walk, stages, otherwise=replaced)
    return unneeded


def _replaced_at(order: int, walk: "Walk", stages: dict[Stage, list[Node]], *, otherwise: bool) -> bool:
    """Whether nobody needs what the model would bring to a place: it is replaced there, or else is not needed above."""
    nodes = stages.get(Stage(walk.step, order))
    return otherwise if nodes is None else _all_replaced(nodes, walk.batch.invokes)


def _all_replaced(nodes: list[Node], invokes: Sequence[Invoke]) -> bool:
    """Whether at this place every prompt's value is another one, and nobody reads what the model would give."""
    put = {node.place.invoke for node in nodes if isinstance(node, Put)}
    return put == set(invokes) and not any(isinstance(node, Arrive) for node in nodes)


def reads_only_last(
    run: Run, stages: dict[Stage, list[Node]], invokes: Sequence[Invoke], order: dict[str, int]
) -> bool:
    """Whether of the logits all that is asked for is the last position's."""
    stage = Stage(0, order[LOGITS])
    if stage not in stages or any(Stage(0, order[hook]) in stages for hook in UNEMBED - {LOGITS}):
        return False
    places = [i.places.get((LOGITS, 0)) for i in invokes]
    if any(place in run.puts or place in run.edited for place in places if place is not None):
        return False
    nodes = stages[stage]
    return all(_last_only(node, 1, run) for node in nodes if isinstance(node, Arrive))


def _last_only(node: Node, axis: int, run: Run) -> bool:
    if node in run.roots or node in run.differentiated:
        return False
    readers = [reader for reader in node.storage.readers if node in reader.inputs and reader in run.needed]
    return all(isinstance(reader, Call) and _picks_last(reader, axis, run) for reader in readers)


def _picks_last(reader: Call, axis: int, run: Run) -> bool:
    if name_of(reader.fn) != "__getitem__":
        return False
    index: Any = reader.args[1]
    if isinstance(index, tuple) and len(index) > axis and all(isinstance(i, (int, slice, Tensor, Node)) for i in index):
        return _is_last(index[axis])
    if axis == 0:
        return _is_last(index)
    return isinstance(index, int) and _last_only(reader, 0, run)


def _is_last(index: Any) -> bool:
    return index == slice(-1, None) if isinstance(index, slice) else isinstance(index, int) and index == -1
