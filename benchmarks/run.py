"""Measure everything, or some of it, and write the results.

python -m benchmarks.run                        next to transformers
python -m benchmarks.run --peers                next to nnsight and TransformerLens too, which it installs
python -m benchmarks.run --only forward cache   some of the subjects
python -m benchmarks.run --device cuda --dtype bfloat16 --results GPU.md
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks import ceilings, forward, generating, growth, memory, patching, remote, starting, tracing
from benchmarks.folders import GROWING, MINIATURES, ON_GPU, SIZES, Size, default_home
from benchmarks.measure import ENOUGH, ONCE, Effort
from benchmarks.peers import Peer, all_peers
from benchmarks.picture import picture
from benchmarks.report import Row, page
from benchmarks.setup import Setup

RESULTS = Path(__file__).parent / "RESULTS.md"
PER_SIZE: dict[str, Callable[[Size, Setup], Iterable[Row]]] = {
    "forward": forward.idle,
    "cache": forward.cached,
    "trace": tracing.rows,
    "last-logits": forward.last_logits,
    "invokes": tracing.invokes,
    "generate": generating.rows,
    "patching": patching.rows,
}
FIRST_SIZE: dict[str, Callable[[Size, Setup], Iterable[Row]]] = {"memory": memory.rows, "loading": starting.loading}
NO_SIZE: dict[str, Callable[[Setup], Iterable[Row]]] = {"import": starting.importing, "remote": remote.rows}
SUBJECTS = ["machine", *PER_SIZE, *FIRST_SIZE, *NO_SIZE, "growth"]
ON_ANY_DEVICE = ["machine", *PER_SIZE, "growth"]


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    sizes = MINIATURES if options.miniature else SIZES if options.device == "cpu" else ON_GPU
    effort = ONCE if options.miniature else Effort(options.seconds, ENOUGH.rounds)
    subjects = options.only or (SUBJECTS if options.device == "cpu" else ON_ANY_DEVICE)
    found: list[Row] = []
    with started(all_peers() if options.peers else [], options) as peers:
        setup = Setup(options.home, peers, effort, options.device, getattr(torch, options.dtype))
        for subject in subjects:
            for row in rows_of(subject, sizes, setup, options.results):
                print(f"{row.subject}: {row}", flush=True)
                found.append(row)
    options.results.write_text(page(found, options.dtype, drawing(options.results) if "growth" in subjects else None))
    print(f"written: {options.results}")


def rows_of(subject: str, sizes: list[Size], setup: Setup, results: Path) -> Iterator[Row]:
    """The rows of a subject."""
    if subject == "machine":
        yield from ceilings.rows(setup)
    elif subject == "growth":
        small = sizes is MINIATURES
        series = growth.all_series(sizes[-1] if small else GROWING, setup.at_most(3), shortest=small)
        yield from growth.rows(series, setup.at_most(3))
        drawing(results).write_text(picture(series))
    elif subject in NO_SIZE:
        yield from NO_SIZE[subject](setup)
    elif subject in FIRST_SIZE:
        yield from FIRST_SIZE[subject](sizes[0], setup)
    else:
        for size in sizes:
            yield from PER_SIZE[subject](size, setup)


def drawing(results: Path) -> Path:
    """Where the picture beside a page is."""
    return results.with_name("growth.svg")


@contextmanager
def started(peers: list[Peer], options: argparse.Namespace) -> Iterator[list[Peer]]:
    """Peers that run inside the `with`."""
    running: list[Peer] = []
    try:
        for peer in peers:
            running.append(peer.start(options.home, options.device, options.dtype))
        yield running
    finally:
        for peer in running:
            peer.stop()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="How fast nnzoo is, next to others.")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, help="some subjects")
    parser.add_argument("--peers", action="store_true", help="install and measure nnsight and TransformerLens too")
    parser.add_argument("--seconds", type=float, default=ENOUGH.seconds, help="for each comparison")
    parser.add_argument("--device", default="cpu", help="cuda: larger models, and what a graphics card can do")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"], help="of the weights")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument(
        "--miniature", action="store_true", help="models of a few kilobytes, once, to see that all of it runs"
    )
    parser.add_argument("--home", type=Path, default=default_home(), help="for checkpoints and environments")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the page to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
