"""How a job comes on, in a terminal or a notebook; nothing where nobody looks."""

import sys
from types import TracebackType
from typing import Any

from nnzoo.config import CONFIG


def is_watched() -> bool:
    """Whether somebody looks: a notebook, or a terminal, and CONFIG.APP.REMOTE_LOGGING is not off."""
    in_notebook = "ipykernel" in sys.modules
    in_terminal = sys.stderr is not None and sys.stderr.isatty()
    return CONFIG.APP.REMOTE_LOGGING and (in_notebook or in_terminal)


class Display:
    """A bar that comes when something is shown, and goes at the end of its `with`."""

    def __init__(self) -> None:
        self.is_shown = is_watched()
        self._bar: Any = None

    def __enter__(self) -> "Display":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, status: str, ahead: int | None, progress: dict[str, Any] | None) -> None:
        """A job's state, as the server tells it."""
        if not self.is_shown:
            return
        if self._bar is None:
            from tqdm.auto import tqdm  # a bar of the terminal's or of the notebook's, whichever it is

            self._bar = tqdm(total=1, leave=False, bar_format="{desc} {bar} {elapsed}")
        self._bar.set_description_str(describe(status, ahead, progress), refresh=False)
        self._bar.n = fraction(progress) if status == "running" else 0
        self._bar.refresh()


def describe(status: str, ahead: int | None, progress: dict[str, Any] | None) -> str:
    """A job's state in a few words.

    >>> describe("queued", 3, None), describe("running", 0, {"layer": 4, "n_layers": 12})
    ('remote: queued, 3 ahead', 'remote: running, layer 5 of 12')
    """
    words = f"remote: {status!s}"
    if status == "queued" and ahead:
        return f"{words}, {ahead} ahead"
    if status == "running" and progress:
        parts = [(name, progress.get(name), progress.get(f"n_{name}s")) for name in ("token", "layer")]
        return ", ".join([words, *(f"{name} {n + 1} of {most}" for name, n, most in parts if n is not None and most)])
    return words


def fraction(progress: dict[str, Any] | None) -> int | float:
    """How much of a job is done, from 0 to 1: in tokens where it generates, else in layers.

    >>> fraction({"layer": 6, "n_layers": 12}), fraction(None)
    (0.5, 0.0)
    """
    for name in ("token", "layer"):
        done, most = (progress or {}).get(name), (progress or {}).get(f"n_{name}s")
        if done is not None and most:
            return min(done / most, 1.0)
    return 0.0
