"""`nnzoo verify`: a model's values next to those of transformers, module by module."""

import re
from argparse import Namespace
from dataclasses import replace
from importlib.metadata import version

import torch
from jaxtyping import Int
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from nnzoo.cli.comparison import Continuation, compare_generation
from nnzoo.cli.generate import utf8
from nnzoo.cli.reference import reference
from nnzoo.debugging.places import TOLERANCES, Difference, compare, places_of
from nnzoo.weights import Checkpoint, load, open_checkpoint, resolve, skeleton
from nnzoo.weights.devices import usable

NEW_TOKENS = 20
SENTENCES = (
    "When Mary and John went to the store, John gave a drink to Mary. The keys to the cabinet are old. "
    "The Eiffel Tower is in the city of Paris. The war lasted from 1732 to 1760."
)


@torch.no_grad()
def run(options: Namespace) -> int:
    """Compare and report: 0 where everything agrees within the tolerance, else 1."""
    device, folder = usable(options.device), resolve(options.model)
    checkpoint = replace(open_checkpoint(folder), name=options.model)
    dtype = checkpoint.dtype(options.dtype)
    tokens = _tokens(checkpoint, options.prompt).to(device)
    n_new = min(NEW_TOKENS, checkpoint.config.n_ctx - tokens.shape[1])
    paths = {path for path, _ in places_of(skeleton(checkpoint.config))}
    # one model after the other, so that the weights are never there twice
    theirs = reference(folder, paths, tokens, dtype=dtype, max_new_tokens=n_new)
    model = load(folder, dtype=dtype, device=device)
    differences = compare(model, tokens, theirs)
    continuation = compare_generation(model, tokens, theirs.generated) if theirs.generated is not None else None

    console, tolerance = Console(highlight=False), options.tolerance or TOLERANCES[dtype]
    name = f"[bold]{escape(options.model)}[/], {type(model).__name__} with {model.config.n_layers} blocks"
    console.print(f"{name}, {str(dtype).removeprefix('torch.')} on {device.type}, {tokens.shape[1]} tokens")
    console.print(
        f"Next to transformers {version('transformers')}: the largest difference in a module's inputs and outputs and "
        "those of its parts, relative to the value's maximum. Attention is fused (sdpa) on both sides, except for the "
        "patterns, which transformers has in its eager implementation only, rounded to float32.\n",
        style="dim",
    )
    _print_blocks(console, differences, tolerance)
    _print_rest(console, differences, tolerance)
    idle = paths - {difference.path for difference in differences}
    return _conclude(console, differences, idle, continuation, tolerance)


def _tokens(checkpoint: Checkpoint, prompt: str | None) -> Int[Tensor, "1 pos"]:
    """The prompt's ids; without one some sentences, or without a tokenizer random ids, and room to go on."""
    n_ctx = checkpoint.config.n_ctx
    if checkpoint.tokenizer is not None:
        ids = checkpoint.tokenizer().encode(SENTENCES if prompt is None else utf8(prompt))
    elif prompt is None:
        ids = torch.randint(checkpoint.config.d_vocab, (48,), generator=torch.Generator().manual_seed(0)).tolist()
    else:
        raise ValueError(f"{checkpoint.name} has no tokenizer for --prompt: leave it out to compare on random ids")
    if prompt is None:
        ids = ids[: max(n_ctx - NEW_TOKENS, 1)]
    if not 0 < len(ids) <= n_ctx:
        raise ValueError(f"--prompt has {len(ids)} tokens, but {checkpoint.name} takes 1 to {n_ctx}")
    return torch.tensor([ids])


# --- the report ------------------------------------------------------------------------------------------------------


def _print_blocks(console: Console, differences: list[Difference], tolerance: float) -> None:
    """A row for each block, a column for each of its modules."""
    inside = [difference for difference in differences if difference.block is not None]
    parts = [part for part in dict.fromkeys(difference.part for difference in inside) if part != "block"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("block", *parts, "whole block"):
        table.add_column(title.replace("_layernorm", "\n_layernorm"), justify="right")
    for block in dict.fromkeys(difference.block for difference in inside):
        rows = [[d for d in inside if d.block == block and d.part == part] for part in (*parts, "block")]
        table.add_row(str(block), *(_largest(row, tolerance) for row in rows))
    console.print(table)


def _print_rest(console: Console, differences: list[Difference], tolerance: float) -> None:
    """A line for each module outside of the blocks."""
    outside = [difference for difference in differences if difference.block is None]
    table = Table(box=None, pad_edge=False, show_header=False)
    for part in dict.fromkeys(difference.part for difference in outside):
        table.add_row(part, _largest([d for d in outside if d.part == part], tolerance))
    console.print("", table, "", sep="\n")


def _largest(differences: list[Difference], tolerance: float) -> str:
    size = max((difference.size for difference in differences), default=0.0)
    text = f"{size:.1e}" if size else "0"
    return f"[bold red]{text}[/]" if any(d.size > d.limit(tolerance) for d in differences) else text


def _conclude(
    console: Console,
    differences: list[Difference],
    idle: set[str],
    continuation: Continuation | None,
    tolerance: float,
) -> int:
    """The verdict, in words and as exit status."""
    if idle:
        kinds = sorted({re.sub(r"\.\d+", "[i]", path) for path in idle})
        console.print(f"Not compared, since transformers does not call it: {escape(', '.join(kinds))}.", style="dim")
    same_text = _print_generation(console, continuation, tolerance)
    wrong = [difference for difference in differences if difference.size > difference.limit(tolerance)]
    if wrong:
        first = wrong[0]
        console.print(
            f"[bold red]FAILED[/]: they part at [bold]{escape(first.place)}[/] ({first.hook}), by {first.size:.1e} "
            f"of {first.limit(tolerance):.0e}. {len(wrong)} of {len(differences)} values are too far apart."
        )
    elif not same_text:
        console.print("[bold red]FAILED[/]: the values agree, but generation does not: look at the KV cache.")
    else:
        worst = max(differences, key=lambda difference: difference.size / difference.limit(tolerance))
        console.print(
            f"[bold green]OK[/]: {len(differences)} values agree. The one nearest to its limit is "
            f"{escape(worst.place)}: {worst.size:.1e} of {worst.limit(tolerance):.0e} allowed."
        )
    return 1 if wrong or not same_text else 0


def _print_generation(console: Console, continuation: Continuation | None, tolerance: float) -> bool:
    """Whether greedy decoding agrees; a tie within the tolerance may go either way."""
    if continuation is None:
        console.print("No generation: the prompt fills the model's context.")
        return True
    n_tokens, n_same, gap = continuation.n_tokens, continuation.n_same, continuation.gap
    if n_same == n_tokens:
        console.print(f"Greedy generation: all {n_tokens} tokens are the same.")
        return True
    is_tie = gap <= tolerance
    reason = "a tie within the tolerance" if is_tie else f"their logits are {gap:.1e} apart"
    console.print(f"Greedy generation: {n_same} tokens are the same, then two others are chosen ({reason}).")
    return is_tie
