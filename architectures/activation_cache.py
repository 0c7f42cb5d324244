"""What a run left at the hook points: a mapping from names to tensors."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from nnzoo.architectures.hooks import Handle, HookPoint


class Recorder:
    """Listens at hook points and keeps what passes."""

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.device = device
        self._values: dict[str, Tensor] = {}
        self._handles: list[Handle] = []

    def listen(self, point: HookPoint, *, gradients: bool = False) -> None:
        self._handles.append(point.add_reader(self._keep))

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()

    def values(self) -> dict[str, Tensor]:
        return self._values

    def _keep(self, value: Tensor, point: HookPoint) -> None:
        self._values[point.name] = value if self.device is None else value.to(self.device)


class ActivationCache(Mapping[str, Tensor]):
    """Activations by hook point name."""

    def __init__(self, values: dict[str, Tensor], model: Any) -> None:
        self._values = values
        self.model = model

    def __getitem__(self, key: str) -> Tensor:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
