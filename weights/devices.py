"""The devices of this machine: what a name asks for, or a refusal that says what there is."""

from textwrap import shorten

import torch


def usable(device: torch.device | str | int) -> torch.device:
    """The device of a name. Raises ValueError, and says what this machine has, where no tensor can be put there.

    >>> usable("cpu")
    device(type='cpu')
    >>> usable("gpu")
    Traceback (most recent call last):
    ValueError: device 'gpu' cannot be used: this machine has cpu... (Expected one of cpu, cuda, ...)
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        raise ValueError(
            f"device {str(device)!r} cannot be used: this machine has {', '.join(_there())}, and torch is "
            f"{torch.__version__} ({shorten(str(error), 90, placeholder=' ...')})"
        ) from error


def _there() -> list[str]:
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]
