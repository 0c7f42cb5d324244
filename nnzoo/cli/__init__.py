"""The command line: `nnzoo demo`, hooks, lens, attention, patch, trace, verify, generate, serve and keys.

Here are only the arguments; what a command does is in the file of its name, which is imported when it is called.
"""

import os
import sys
from argparse import (
    ArgumentParser,
    ArgumentTypeError,
    HelpFormatter,
    Namespace,
    RawDescriptionHelpFormatter,
    _SubParsersAction,
)
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any

DTYPES = ("float32", "float64", "float16", "bfloat16")
FAILED, MISUSED, INTERRUPTED = 1, 2, 130

MODEL = "a folder, an id of the Hugging Face Hub, or nnzoo/tiny-gpt2, nnzoo/tiny-llama, nnzoo/tiny-mistral"
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
KNOWN_ERRORS = (ImportError, LookupError, OSError, ValueError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, sys.argv's by default, and give its exit status.

    0 is success, 1 a check that failed, 2 a command that cannot be carried out (one line on stderr says why; with
    NNZOO_TRACEBACK=1 in the environment comes the traceback), 130 an interruption.

    >>> main(["hooks", "no/such/folder"])
    2
    """
    # a stream that the shell closed (>&-) is None; what replaces it stays open, as streams do
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # shades are drawn with characters that not every terminal has
    try:
        return _run(parser().parse_args(arguments))
    except BrokenPipeError:  # the reader, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except SystemExit as end:  # argparse's: --help and --version, or usage and error already printed
        return end.code if isinstance(end.code, int) else MISUSED


def _run(options: Namespace) -> int:
    try:
        status = import_module(f"nnzoo.cli.{options.command}").run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        raise
    except KNOWN_ERRORS as error:
        if os.environ.get("NNZOO_TRACEBACK"):
            raise
        return _complain(str(error.args[0] if isinstance(error, KeyError) else error), MISUSED)


def _complain(message: str, status: int) -> int:
    one_line = " ".join(message.split()) or "failed without a message; NNZOO_TRACEBACK=1 shows where"
    sys.stderr.write(f"nnzoo: {one_line}\n")
    return status


def parser() -> ArgumentParser:
    """The parser of the command line.

    >>> parser().parse_args(["hooks", "nnzoo/tiny-gpt2", "--layer", "2"]).layer
    2
    """
    top = ArgumentParser(
        prog="nnzoo",
        description="Transformer language models to look inside.",
        epilog="nnzoo COMMAND --help says more of a command. Try: nnzoo demo",
        formatter_class=_Help,
    )
    top.add_argument("--version", action="version", version=f"nnzoo {version('nnzoo')}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_demo, _hooks, _lens, _attention, _patch, _trace, _verify, _generate, _serve, _keys):
        add(commands)
    return top


class _Help(HelpFormatter):
    """Leaves room for the longest command, which argparse forgets to count with its indent."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._action_max_length = 13


def _demo(commands: _SubParsersAction) -> None:
    command = _command(
        commands,
        "demo",
        "open up a trained transformer, in the terminal and as an HTML page",
        "Shows one prompt inside one model: its predictions, what each layer would\n"
        "predict, an induction head, and the place that decides between two names.\n"
        "The source, nnzoo/cli/demo.py, is written as a tutorial.",
        "nnzoo demo nnzoo/tiny-llama --html llama.html",
    )
    command.add_argument("model", nargs="?", default="nnzoo/tiny-gpt2", metavar="MODEL", help=f"{MODEL} (the default)")
    command.add_argument("--html", default="nnzoo-demo.html", metavar="FILE", help="the page to write (%(default)s)")
    command.add_argument("--no-color", action="store_true", help="no colors in the terminal")


def _hooks(commands: _SubParsersAction) -> None:
    command = _command(
        commands,
        "hooks",
        "list every hook point of a model",
        "Lists each hook point in the order of the forward pass: its name, its shape in\n"
        "symbols and in numbers, and below it what it is in a trace, after 'model.', as\n"
        "in model.transformer.h[5].output[0]. Only the config is read.",
        "nnzoo hooks openai-community/gpt2 --layer 5",
    )
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument("--layer", type=int, metavar="N", help="only the hook points of this block")


def _lens(commands: _SubParsersAction) -> None:
    command = _command(
        commands,
        "lens",
        "what a model would say if it stopped after each layer",
        "The logit lens: the last norm and the unembedding, applied to the residual\n"
        "stream after each block. A cell is the most likely next token at a position,\n"
        "and its probability; with --target the probability of that token, and its rank.",
        'nnzoo lens nnzoo/tiny-gpt2 "The capital of France is" --target Paris',
    )
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument("prompt", metavar="PROMPT", help="the text that the model reads")
    command.add_argument("--target", metavar="TOKEN", help="a word of one token, whose probability is shown")
    command.add_argument(
        "--at", metavar="SITE", help="read resid_pre, resid_mid, attn_out or mlp_out instead of resid_post"
    )
    _html(command)


def _attention(commands: _SubParsersAction) -> None:
    command = _command(
        commands,
        "attention",
        "where each head of a model looks",
        "Attention patterns on a prompt. Without --layer and --head: where each head\n"
        "looks most from the last token. With them: whole patterns, from each row to\n"
        "the columns. A page (--html) has all heads, with their values on hovering.",
        'nnzoo attention nnzoo/tiny-gpt2 "The capital of France is" --layer 1 --head 0',
    )
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument("prompt", metavar="PROMPT", help="the text that the model reads")
    command.add_argument("--layer", type=int, metavar="N", help="the heads of this block")
    command.add_argument("--head", type=int, metavar="N", help="this head, of the block or of each")
    _html(command)


def _patch(commands: _SubParsersAction) -> None:
    command = _command(
        commands,
        "patch",
        "which places of a run carry the answer",
        "Activation patching: of two prompts that differ in a word (and have as many\n"
        "tokens), values of the clean run are put into the corrupted one, at each place\n"
        "in turn. 0: nothing changes; 1: the answer of the clean run is back.",
        'nnzoo patch nnzoo/tiny-gpt2 "The capital of France is" "The capital of Italy is" --answer Paris --wrong Rome',
    )
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument("clean", metavar="CLEAN", help="the prompt whose answer is to come back")
    command.add_argument("corrupted", metavar="CORRUPTED", help="the prompt that is patched")
    command.add_argument("--answer", required=True, metavar="TOKEN", help="what should follow CLEAN: one token")
    command.add_argument("--wrong", required=True, metavar="TOKEN", help="what should follow CORRUPTED: one token")
    command.add_argument(
        "--site",
        default="resid_pre",
        metavar="SITE",
        help="resid_pre (the default), resid_mid, attn_out, mlp_out; of heads z, q, k, v, pattern",
    )
    command.add_argument(
        "--by", metavar="AXES", help='what to patch one by one: pos, head, "pos head" (pos, or head where there is one)'
    )
    _html(command)


def _trace(commands: _SubParsersAction) -> None:
    command = _command(
        commands,
        "trace",
        "read values of a pass by their paths, and store them",
        "Reads what stands at each PATH when the model reads a prompt. A path is\n"
        "Hugging Face's, with .output or .input, or the name of a hook point; `nnzoo\n"
        'hooks MODEL` lists both. "*" stands for every block. The pass stops after the\n'
        "last of them.",
        'nnzoo trace nnzoo/tiny-gpt2 "The capital of France is" "transformer.h[1].output[0]" '
        '"blocks.*.attn.hook_pattern" --out values.safetensors',
    )
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument("prompt", metavar="PROMPT", help="the text that the model reads")
    command.add_argument("paths", nargs="+", metavar="PATH", help="what to read; a module's path is its output")
    command.add_argument("--out", metavar="FILE", help="the file to write, by path; safetensors")
    _html(command)


def _html(command: ArgumentParser) -> None:
    command.add_argument("--html", metavar="FILE", help="write one page instead of to the terminal")


def _verify(commands: _SubParsersAction) -> None:
    command = _command(
        commands,
        "verify",
        "compare a model with transformers, module by module",
        "Runs transformers and nnzoo on the same checkpoint and compares the input and\n"
        "output of every module, the logits, and greedy generation. Exits with 0 if all\n"
        "agree within the tolerance, else with 1.",
        'nnzoo verify path/to/folder --dtype float64 --prompt "The capital of France is"',
    )
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument(
        "--prompt", metavar="TEXT", help="a text (else some sentences; without a tokenizer, random ids)"
    )
    command.add_argument("--dtype", choices=DTYPES, help="convert the weights (default: as the checkpoint says)")
    command.add_argument(
        "--tolerance",
        type=_positive_number,
        metavar="X",
        help="largest difference allowed, relative to a value's maximum",
    )
    command.add_argument("--device", default="cpu", metavar="NAME", help="where to run, e.g. cuda (%(default)s)")


def _generate(commands: _SubParsersAction) -> None:
    command = _command(
        commands,
        "generate",
        "continue a text",
        "Continues a prompt, and prints what was added. Each token is the most likely\n"
        "one, unless --sample, or an option of sampling, is given.",
        'nnzoo generate nnzoo/tiny-gpt2 "The capital of France is" --max-new-tokens 3',
    )
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument("prompt", metavar="PROMPT", help='the text to continue; "-" reads it from standard input')
    command.add_argument(
        "--max-new-tokens",
        type=_positive_integer,
        default=20,
        metavar="N",
        help="how many tokens at most (%(default)s)",
    )
    command.add_argument("--stop", action="append", metavar="TEXT", help="end with this text; may be given again")
    command.add_argument("--sample", action="store_true", help="draw each token at random, by its probability")
    command.add_argument(
        "--temperature", type=_positive_number, metavar="T", help="sample, with logits divided by this"
    )
    command.add_argument("--top-k", type=_positive_integer, metavar="K", help="sample from the K most likely tokens")
    command.add_argument(
        "--top-p", type=_positive_number, metavar="P", help="sample from the most likely tokens that together reach P"
    )
    command.add_argument("--seed", type=int, metavar="N", help="sample the same text again: any whole number")


def _serve(commands: _SubParsersAction) -> None:
    command = _command(
        commands,
        "serve",
        "run the traces of others (remote=True) on models of this machine",
        "Serves models over HTTP. Jobs wait in a durable queue and run in worker\n"
        "processes, which are killed at the limits below and started again. On this\n"
        "machine alone any key is taken; beyond it, only those of a file of keys.",
        "nnzoo serve nnzoo/tiny-gpt2 --host 0.0.0.0 --keys keys.txt",
    )
    command.add_argument("models", nargs="+", metavar="[NAME=]MODEL", help=f"{MODEL}; NAME is what clients call it")
    command.add_argument("--host", metavar="ADDRESS", help="where to listen (127.0.0.1); unix:/PATH is a socket")
    command.add_argument("--port", type=_port, metavar="N", help="the port; 0 is any that is free (8000)")
    command.add_argument("--keys", metavar="FILE", help="the keys that are taken; `nnzoo keys` makes them")
    command.add_argument("--data", metavar="FOLDER", help="where jobs are kept (~/.local/state/nnzoo/jobs)")
    command.add_argument("--workers", type=_positive_integer, metavar="N", help="processes for each model (1)")
    command.add_argument("--device", metavar="NAME", help="where models run, e.g. cuda (cpu)")
    command.add_argument("--worker-memory", type=_size, metavar="SIZE", help="of one worker, e.g. 8G (its share)")
    command.add_argument("--queued-jobs", type=_positive_integer, metavar="N", help="of one key at a time (200)")
    command.add_argument("--queued-bytes", type=_size, metavar="SIZE", help="of one key at a time (2G)")
    command.add_argument("--jobs-per-minute", type=_positive_integer, metavar="N", help="of one key (6000)")
    command.add_argument("--open-requests", type=_positive_integer, metavar="N", help="of one key at a time (100)")
    command.add_argument("--keep-seconds", type=_positive_number, metavar="S", help="how long answers stay (3600)")
    command.add_argument("--keep-bytes", type=_size, metavar="SIZE", help="of all answers together (20G)")
    command.add_argument("--patience", type=_positive_number, metavar="S", help="with who stands still (20)")
    command.add_argument("--grace", type=_positive_number, metavar="S", help="for running jobs at the end (10)")
    _cluster(command)
    _limits(command)


def _cluster(command: ArgumentParser) -> None:
    cluster = command.add_argument_group("workers on a Ray cluster (nnzoo[ray], docs/remote.md)")
    cluster.add_argument("--ray", metavar="ADDRESS", help="of the cluster, e.g. 10.0.0.1:6379; auto: this machine's")
    cluster.add_argument("--worker-cpus", type=_positive_integer, metavar="N", help="processors of one worker (1)")
    cluster.add_argument("--worker-gpus", type=_positive_number, metavar="X", help="of one, with --device cuda (1)")


def _limits(command: ArgumentParser) -> None:
    limits = command.add_argument_group("limits of one request")
    limits.add_argument("--seconds", type=_positive_number, metavar="S", help="of its run (300)")
    limits.add_argument("--nodes", type=_positive_integer, metavar="N", help="of its graph (50000)")
    limits.add_argument("--rows", type=_positive_integer, metavar="N", help="of all its prompts (1024)")
    limits.add_argument("--prompt-tokens", type=_positive_integer, metavar="N", help="of all its prompts (131072)")
    limits.add_argument("--new-tokens", type=_positive_integer, metavar="N", help="of one prompt (4096)")
    limits.add_argument("--request-bytes", type=_size, metavar="SIZE", help="as it is sent (256M)")
    limits.add_argument("--graph-bytes", type=_size, metavar="SIZE", help="of its graph (16M)")
    limits.add_argument("--tensor-bytes", type=_size, metavar="SIZE", help="of one value (4G)")
    limits.add_argument("--alive-bytes", type=_size, metavar="SIZE", help="of all values at a time (16G)")
    limits.add_argument("--result-bytes", type=_size, metavar="SIZE", help="of what comes back (1G)")


def _keys(commands: _SubParsersAction) -> None:
    command = _command(
        commands,
        "keys",
        "make a key for a server",
        "Prints a new key, once: the file gets its name and its hash, and a server that\n"
        "runs with --keys FILE takes it at once. To take it back, delete its line.",
        "nnzoo keys keys.txt alice",
    )
    command.add_argument("file", metavar="FILE", help="the file of keys, made if there is none")
    command.add_argument("name", metavar="NAME", help="whose key it is, for the file and the server's log")


def _command(commands: _SubParsersAction, name: str, purpose: str, description: str, example: str) -> ArgumentParser:
    return commands.add_parser(
        name,
        help=purpose,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=RawDescriptionHelpFormatter,
    )


def _positive_integer(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"a whole number above 0 is needed, not {text!r}")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise ArgumentTypeError(f"a port is a number from 0 to 65535, not {text!r}")
    return int(text)


def _size(text: str) -> int:
    """Bytes: 1000, 64K, 256M, 8G."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS else (text, "")
    return _positive_integer(number) * UNITS.get(unit, 1)


def _positive_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ArgumentTypeError(f"a finite number above 0 is needed, not {text!r}")
    return number
