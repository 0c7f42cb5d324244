"""PyTorch's global state at a line of the body: what is recorded there runs under it.

Grad mode, autocast, default dtype, and for what draws random numbers the generator's state.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor


class Modes(NamedTuple):
    """The modes that an operation's result depends on."""

    grad: bool
    inference: bool
    default_dtype: torch.dtype
    autocast: torch.dtype | None
    device_type: str

    @classmethod
    def now(cls, device: torch.device) -> "Modes":
        """Those that PyTorch is in, where `device` is the model's."""
        device_type = _kind(device)
        return cls(
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
            _autocast(device_type),
            device_type,
        )

    @property
    def are_on(self) -> bool:
        """Whether PyTorch is in them now."""
        return (
            self.grad == torch.is_grad_enabled()
            and self.inference == torch.is_inference_mode_enabled()
            and self.default_dtype == torch.get_default_dtype()
            and self.autocast == _autocast(self.device_type)
        )


@cache
def _kind(device: torch.device) -> str:
    """A device's type, which PyTorch writes anew each time."""
    return device.type


def _autocast(device_type: str) -> torch.dtype | None:
    """The dtype in which operations on a kind of device run for others now."""
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


AS_IT_IS: AbstractContextManager = nullcontext()


def restored(modes: Modes | None, random: Tensor | None = None) -> AbstractContextManager:
    """Inside the `with`, PyTorch is in these modes, and its generator in this state."""
    if modes is not None and modes.are_on:
        modes = None
    return AS_IT_IS if modes is None and random is None else _restored(modes, random)


def graded(on: bool) -> AbstractContextManager:
    """Inside the `with`, operations are followed for a backward pass, or are not."""
    return AS_IT_IS if torch.is_grad_enabled() == on else torch.set_grad_enabled(on)


@contextmanager
def _restored(modes: Modes | None, random: Tensor | None) -> Iterator[None]:
    before = torch.get_default_dtype()
    with ExitStack() as stack:
        if modes is not None:
            if modes.inference != torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(modes.inference))
            stack.enter_context(torch.set_grad_enabled(modes.grad and torch.is_grad_enabled()))
            stack.enter_context(
                torch.autocast(modes.device_type, dtype=modes.autocast, enabled=modes.autocast is not None)
            )
            torch.set_default_dtype(modes.default_dtype)
        if random is not None:
            stack.enter_context(torch.random.fork_rng())
            set_random_state(random)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def random_state(device: torch.device) -> Tensor:
    """The state of the generator that operations on a device draw from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state(state: Tensor) -> None:
    """Go back to a state of the generator; a GPU's is told from the CPU's by its length."""
    if len(state) == len(torch.get_rng_state()):
        torch.set_rng_state(state)
    else:
        torch.cuda.set_rng_state(state)
