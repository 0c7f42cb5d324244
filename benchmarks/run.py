"""Measure everything, or some of it, and write the results.

python -m benchmarks.run                        next to transformers
python -m benchmarks.run --peers                next to nnsight and TransformerLens too, which it installs
python -m benchmarks.run --only forward cache   some of the subjects
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks import ceilings, forward, generating, memory, patching, remote, starting, tracing
from benchmarks.folders import MINIATURES, SIZES, Size, default_home
from benchmarks.measure import ENOUGH, ONCE, Effort
from benchmarks.peers import Peer, all_peers
from benchmarks.report import Row, page

RESULTS = Path(__file__).parent / "RESULTS.md"
PER_SIZE: dict[str, Callable[..., list[Row]]] = {
    "forward": forward.idle,
    "cache": forward.cached,
    "trace": tracing.rows,
    "invokes": tracing.invokes,
    "generate": generating.rows,
    "patching": patching.rows,
}
SUBJECTS = ["machine", *PER_SIZE, "memory", "loading", "import", "remote"]


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    sizes, effort = (MINIATURES, ONCE) if options.miniature else (SIZES, Effort(options.seconds, ENOUGH.rounds))
    found: list[Row] = []
    with started(all_peers() if options.peers else [], options.home) as peers:
        for subject in options.only:
            for row in rows_of(subject, sizes, options.home, peers, effort):
                print(f"{row.subject}: {row}", flush=True)
                found.append(row)
    options.results.write_text(page(found))
    print(f"written: {options.results}")


def rows_of(subject: str, sizes: list[Size], home: Path, peers: Sequence[Peer], effort: Effort) -> Iterator[Row]:
    """The rows of a subject, with that effort for each comparison."""
    if subject == "machine":
        yield from ceilings.rows(effort=effort)
    elif subject == "import":
        yield from starting.importing(effort)
    elif subject == "remote":
        yield from remote.rows(effort)
    elif subject == "memory":
        yield from memory.rows(sizes[0], home, peers)
    elif subject == "loading":
        yield from starting.loading(sizes[0], home, effort)
    else:
        for size in sizes:
            yield from PER_SIZE[subject](size, home, peers, effort)


@contextmanager
def started(peers: list[Peer], home: Path) -> Iterator[list[Peer]]:
    """Peers that run inside the `with`."""
    running: list[Peer] = []
    try:
        for peer in peers:
            running.append(peer.start(home))
        yield running
    finally:
        for peer in running:
            peer.stop()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="How fast nnzoo is, next to others.")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=SUBJECTS, help="some subjects")
    parser.add_argument("--peers", action="store_true", help="install and measure nnsight and TransformerLens too")
    parser.add_argument("--seconds", type=float, default=ENOUGH.seconds, help="for each comparison")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument(
        "--miniature", action="store_true", help="models of a few kilobytes, once, to see that all of it runs"
    )
    parser.add_argument("--home", type=Path, default=default_home(), help="for checkpoints and environments")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the page to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
