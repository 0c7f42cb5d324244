"""`nnzoo hooks`: every hook point of a model, with its shape and what it is in a trace."""

from argparse import Namespace

from rich.console import Console
from rich.text import Text

from nnzoo.hook_table import hook_table
from nnzoo.weights import read_config, resolve, skeleton


def run(options: Namespace) -> int:
    """Print the list, of one block or with "i" for all of them; no weights are read.

    >>> run(Namespace(model="nnzoo/tiny-gpt2", layer=1))
    blocks.1.hook_resid_pre ...
    0
    """
    table = hook_table(skeleton(read_config(resolve(options.model, weights=False))), options.layer)
    console = Console(highlight=False)
    if options.layer is None:
        console.print(f"{table.title}\n", style="dim")
    for row, line in zip(table, table.lines(), strict=True):
        text = Text(line)
        text.stylize("bold", 0, len(row.name))
        text.stylize("cyan", len(line) - len(row.numbers))
        console.print(text, soft_wrap=True)  # a narrow terminal may fold a line, a pipe gets it whole
        for note in row.notes:
            console.print(Text(f"    {note}", style="dim"), soft_wrap=True)
    return 0
