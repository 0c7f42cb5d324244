"""Numbers that a body has looked at, with what nnsight's programs do with them: `loss.item().save()`."""

from typing import Any


class SavedInt(int):
    """An int that says of itself that it is saved: it is there already."""

    def save(self) -> "SavedInt":
        """Itself."""
        return self

    @property
    def value(self) -> "SavedInt":
        """Itself: older code asks for `.value`."""
        return self


class SavedFloat(float):
    """A float that says of itself that it is saved: it is there already."""

    def save(self) -> "SavedFloat":
        """Itself."""
        return self

    @property
    def value(self) -> "SavedFloat":
        """Itself: older code asks for `.value`."""
        return self


def that_can_be_saved(number: Any) -> Any:
    """A number with `.save()`; what is neither a float nor an int stays as it is.

    >>> that_can_be_saved(0.5).save(), that_can_be_saved(2).save(), that_can_be_saved(True)
    (0.5, 2, True)
    """
    kind = {float: SavedFloat, int: SavedInt}.get(type(number))
    return number if kind is None else kind(number)
