"""CUDA graphs: a hundred kernels for one call."""

from collections.abc import Callable

import torch
from torch import Tensor

Recording = tuple[Callable[[], None], Tensor]  # what repeats the work, and where its result stands then


class CudaGraphs:
    """Records work on a CUDA device; all recordings share one pool of memory, which goes with the last of them.

    So they must be repeated in the order in which they were recorded, or not need what others left.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream()

    def __call__(self, work: Callable[[], Tensor]) -> Recording:
        """Run `work` once to warm up, and once to write down what it asks of the device, which does not do it then.

        Raises RuntimeError where it waits for the device, or does anything else that cannot be repeated.
        """
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                work()  # kernels are loaded and libraries take their memory now: a recording must not do it
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # other threads may go on using the device: what they do is not recorded, and no error
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                output = work()
        return graph.replay, output


RECORDERS: dict[str, Callable[[torch.device], Callable[[Callable[[], Tensor]], Recording]]] = {"cuda": CudaGraphs}
