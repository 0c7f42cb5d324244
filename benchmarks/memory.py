"""Memory of a trace that saves one layer of a long batch: does it grow with the depth of that layer?

Each figure is of a process of its own: how far its resident memory rises, at its peak, above what it was before.
"""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.folders import Size
from benchmarks.peers import able
from benchmarks.report import Row, plain_row
from benchmarks.setup import Setup

SUBJECT = "Memory of a trace that saves one layer"
SHAPE = (32, 512)  # batch, pos

CODE = """
import json, re, sys
import torch
{imports}
folder, layer, batch, n_pos = sys.argv[1], *map(int, sys.argv[2:5])
model = LanguageModel(folder, dispatch=True)
blocks = model.transformer.h if hasattr(model, "transformer") else model.model.layers

def megabytes(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

def work(tokens):
    with torch.no_grad(), model.trace(tokens):
        kept = {read}.save()
    return kept

tokens = torch.arange(batch * n_pos).reshape(batch, n_pos) % 50
work(tokens[:1, :8])
open("/proc/self/clear_refs", "w").write("5")  # the peak is counted from here on
before = megabytes("VmRSS")
kept = work(tokens)
print(json.dumps([megabytes("VmHWM") - before, kept.untyped_storage().nbytes() / 2**20]))
"""
OURS = {"imports": "from nnzoo import LanguageModel", "read": "blocks[layer].output[0]"}
SLICE = OURS | {"read": "blocks[layer].output[0][:, -1]"}
NNSIGHT = {"imports": "from nnsight import LanguageModel", "read": "blocks[layer].output"}


def rows(size: Size, setup: Setup) -> list[Row]:
    """Peaks for a layer near the ground and for one near the roof, and of nnsight; then what a saved slice keeps."""
    folder, low, high = size.folder(setup.home), 1, size.n_layers - 1
    work = "{}, {}x{}".format(size.name, *SHAPE)
    shallow, _ = measured(sys.executable, OURS, folder, low)
    deep, _ = measured(sys.executable, OURS, folder, high)
    _, kept = measured(sys.executable, SLICE, folder, low)
    found = [plain_row(SUBJECT, f"{work}: peak, layer {high}", deep, f"layer {low} {shallow:.3g} MiB", deep / shallow)]
    for peer in able(setup.peers, "trace", size):
        theirs, _ = measured(peer.python(setup.home), NNSIGHT, folder, high)
        found.append(
            plain_row(SUBJECT, f"{work}: peak, layer {high}", deep, f"{peer.name} {theirs:.3g} MiB", deep / theirs, 0.5)
        )
    whole = SHAPE[0] * SHAPE[1] * size.d_model * 4 / 2**20
    found.append(
        plain_row(SUBJECT, f"{work}: kept by a saved last position", kept, f"the layer {whole:.3g} MiB", kept / whole)
    )
    return found


def measured(python: str | Path, parts: dict[str, str], folder: Path, layer: int) -> tuple[float, float]:
    """MiB of a trace's peak, and of the memory behind what it gives."""
    command = [python, "-c", CODE.format(**parts), folder, *map(str, (layer, *SHAPE))]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    peak, kept = json.loads(printed.splitlines()[-1])
    return max(peak, 0.01), kept  # of a tiny model it may be nothing at all
