"""Random numbers that can be drawn again: a generator that begins where torch's global one stands.

generator = fork(device)        # the global one stays where it is
...                             # draw, copy, draw again
adopt(generator)                # the global one goes on from here, as if it had drawn
"""

import torch


def fork(device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own that will draw what torch's global one of that device would draw next.

    >>> torch.rand(1, generator=fork()) == torch.rand(1)
    tensor([True])
    """
    device = torch.device(device)
    generator = torch.Generator(device)
    generator.set_state(global_generator(device).get_state())
    return generator


def adopt(generator: torch.Generator) -> None:
    """Let torch's global generator go on from where this one stands.

    >>> generator = fork()
    >>> drawn = torch.rand(1, generator=generator)
    >>> adopt(generator)
    >>> torch.rand(1) == drawn
    tensor([False])
    """
    global_generator(generator.device).set_state(generator.get_state())


def copied(generator: torch.Generator) -> torch.Generator:
    """Another generator that will draw the same numbers."""
    other = torch.Generator(generator.device)
    other.set_state(generator.get_state())
    return other


def seeded(seed: int, device: torch.device) -> torch.Generator:
    """A generator that draws what torch's global one draws after `torch.manual_seed(seed)`."""
    return torch.Generator(device).manual_seed(seed)


def global_generator(device: torch.device) -> torch.Generator:
    """The generator of a device from which is drawn when nobody names another. Raises ValueError for no such."""
    if device.type == "cpu":
        return torch.default_generator
    if device.type != "cuda":
        raise ValueError(f"torch's global generator of {device} cannot be copied: pass a seed")
    torch.cuda.init()  # its generators are there only then
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
