"""Which way steps are recorded, if at all."""

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.kv_cache import KVCache
from nnzoo.generation.cuda_graphs import RECORDERS
from nnzoo.generation.graphed import Graphed
from nnzoo.generation.recordings import Recorded
from nnzoo.generation.steps import Listeners
from nnzoo.generation.taped import Taped

WORTH = 16  # new tokens: recording takes about as long as four steps


def recorded(model: HookedModel, cache: KVCache, new_tokens: int, *, alone: bool = False) -> Recorded | None:
    """What runs the steps of a generation faster, if its device can, and it is long enough to be worth it.

    `alone`: between two steps nothing runs that could change the model, or begin to listen.
    """
    if new_tokens < WORTH or len((listeners := Listeners.of(model)).devices) > 1:
        return None
    device = model.device.type
    if device in RECORDERS:
        return Graphed(model, cache, RECORDERS[device](model.device), listeners=listeners, alone=alone)
    return Taped(model, cache, listeners=listeners, alone=alone) if device == "cpu" else None
