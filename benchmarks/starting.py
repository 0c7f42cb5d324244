"""From nothing to a model: import, reading a checkpoint, the first activations; each in a process of its own."""

import json
import subprocess
import sys
from functools import partial

from benchmarks.folders import Size
from benchmarks.measure import Job, alternate
from benchmarks.report import Row, bound_row, ratio_row
from benchmarks.setup import Setup

LOADING, IMPORTING = "Loading a checkpoint", "Importing"
MEMORY, IMPORT_TIME = 20.0, 0.2  # MB, seconds

CLOCK = """
import json, re, time
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
"""
IMPORT = (
    CLOCK
    + """
import gc, torch
gc.collect()  # what torch left would be walked through in the time of others, by the luck of a counter
start = time.perf_counter()
{statement}
print(json.dumps(time.perf_counter() - start))
"""
)
IMPORTS = {
    "nnzoo": "from nnzoo import load as read",
    # the class itself: the automatic one imports it only when it reads, which is no part of reading
    "transformers": "from transformers import GPT2LMHeadModel; read = GPT2LMHeadModel.from_pretrained",
}
LOAD = (
    CLOCK
    + """
import gc, sys
{imports}
gc.collect()  # what the imports left is walked through at some time: it should be nobody's by the luck of a counter
before, start = anonymous(), time.perf_counter()
model = read(sys.argv[1])
took = time.perf_counter() - start
print(json.dumps([took, anonymous() - before]))
"""
)
FIRST = """
import json, sys, time
start = time.perf_counter()
import torch
tokens = torch.arange(10)[None]
{work}
print(json.dumps(time.perf_counter() - start))
"""
ACTIVATIONS = {
    "nnzoo": """
from nnzoo import LanguageModel
model = LanguageModel(sys.argv[1])
with model.trace(tokens):
    states = [block.output[0].save() for block in model.transformer.h]
""",
    "transformers": """
from transformers import GPT2LMHeadModel
model = GPT2LMHeadModel.from_pretrained(sys.argv[1])
with torch.no_grad():
    states = model(tokens, output_hidden_states=True).hidden_states
""",
}


def loading(size: Size, setup: Setup) -> list[Row]:
    """Seconds and anonymous memory of reading a GPT-2 folder, then seconds from the imports to activations."""
    folder, memory = size.folder(setup.home), {}

    def load(name: str) -> Job:
        def job() -> float:
            seconds, memory[name] = run(LOAD.format(imports=IMPORTS[name]), folder)
            return seconds

        return job

    megabytes = (folder / "model.safetensors").stat().st_size / 1e6
    work = f"{size.name}, {megabytes:.0f} MB"
    turns = alternate({name: load(name) for name in IMPORTS}, setup.effort)
    first = {name: lambda work=work: run(FIRST.format(work=work), folder) for name, work in ACTIVATIONS.items()}
    starts = alternate(first, setup.effort)
    return [
        ratio_row(LOADING, work, turns, "transformers", 1.0),
        bound_row(LOADING, f"{work}: anonymous memory", memory["nnzoo"], MEMORY, "MB", _theirs(memory)),
        ratio_row(LOADING, f"{work}: imports, loading, first activations", starts, "transformers", 0.6),
    ]


def importing(setup: Setup) -> list[Row]:
    """What is imported where torch is already: the package alone, and with what a model needs."""
    statements = ("import nnzoo", "from nnzoo import LanguageModel")
    turns = alternate({one: partial(run, IMPORT.format(statement=one)) for one in statements}, setup.effort)
    return [
        bound_row(IMPORTING, f"`{one}` after `import torch`", turns.median(one), IMPORT_TIME, "s") for one in statements
    ]


def run(code: str, *arguments: object) -> float | list[float]:
    """What a fresh process prints as JSON."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def _theirs(memory: dict[str, float]) -> str:
    return f"transformers {memory['transformers']:.3g} MB"
