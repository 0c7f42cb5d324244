"""Numbers that a body has looked at: older code saves them and then asks for `.value`."""

from typing import Any


class SavedInt(int):
    """An int that is its own `.value`."""

    @property
    def value(self) -> "SavedInt":
        """Itself."""
        return self


class SavedFloat(float):
    """A float that is its own `.value`."""

    @property
    def value(self) -> "SavedFloat":
        """Itself."""
        return self


def with_value(number: Any) -> Any:
    """A number with `.value`; what is neither a float nor an int stays as it is.

    >>> with_value(0.5).value, with_value(2).value, with_value(True)
    (0.5, 2, True)
    """
    kind = {float: SavedFloat, int: SavedInt}.get(type(number))
    return number if kind is None else kind(number)
