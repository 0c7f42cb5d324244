"""What to say when a tensor that was put back at a hook point does not fit: the axis, the sizes, the likely cause."""

from collections.abc import Mapping

from torch import Tensor


def explain(name: str, axes: str, sizes: Mapping[str, int], old: Tensor, new: Tensor) -> str:
    """One message: the hook point, what it declares, what it got, and a guess at the cause."""
    if new.shape == old.shape:
        return _of_another_kind(name, old, new)
    symbols = tuple(axes.split())
    expected, got = tuple(old.shape), tuple(new.shape)
    lines = [f"{name} holds [{axes}] = {list(expected)}, but got {list(got)}"]
    if len(expected) == len(got) == len(symbols):
        wrong = [(s, e, g) for s, e, g in zip(symbols, expected, got, strict=True) if e != g]
        lines.append("; ".join(f"axis {symbol!r}: expected {e}, got {g}" for symbol, e, g in wrong))
    else:
        lines.append(f"expected {len(expected)} axes, got {len(got)}")
    guess = _guess(symbols, sizes, expected, got)
    return ". ".join([*lines, guess] if guess else lines) + "."


def _of_another_kind(name: str, old: Tensor, new: Tensor) -> str:
    if new.dtype != old.dtype:
        return f"{name} holds {old.dtype}, but got {new.dtype}. Convert what is put back: value.to({old.dtype})."
    return f"{name} lives on {old.device}, but got a tensor on {new.device}. Move it there: value.to('{old.device}')."


def _guess(symbols: tuple[str, ...], sizes: Mapping[str, int], expected: tuple, got: tuple) -> str | None:
    if len(got) == len(expected):
        return _guess_sizes(symbols, sizes, expected, got)
    if got == expected[1:]:
        return "The batch axis was dropped: index with [:1] or [None] to keep it"
    if len(expected) == 4 and got == (*expected[:2], expected[2] * expected[3]):
        return f"Axes {symbols[2]!r} and {symbols[3]!r} are merged: split them with einops.rearrange"
    if len(got) > len(expected) and tuple(n for n in got if n != 1) == tuple(n for n in expected if n != 1):
        return "An axis of size 1 was kept: squeeze it, or index without None"
    return None


def _guess_sizes(symbols: tuple[str, ...], sizes: Mapping[str, int], expected: tuple, got: tuple) -> str | None:
    wrong = [i for i in range(len(got)) if got[i] != expected[i]]
    if len(wrong) == 2 and got[wrong[0]] == expected[wrong[1]] and got[wrong[1]] == expected[wrong[0]]:
        return f"Axes {symbols[wrong[0]]!r} and {symbols[wrong[1]]!r} look swapped"
    for i in wrong:
        symbol = symbols[i]
        if symbol in ("kv_head", "head") and got[i] in (sizes.get("head"), sizes.get("kv_head")):
            return "Query heads and key-value heads are of different number here (grouped-query attention)"
        if symbol in ("pos", "query") and expected[i] == 1:
            return f"This pass has one {symbol!r}: a step of generation under the KV cache, not the whole prompt"
        if got[i] == 1:
            return f"Axis {symbol!r} was reduced or indexed with its size-1 axis kept: expand it to {expected[i]}"
    return None
