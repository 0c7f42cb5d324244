"""The command line as a whole: usage, errors, exit statuses; and `nnzoo generate`."""

import io
import re
import shutil
import subprocess
import sys
from importlib.metadata import version

import pytest

from families import folder
from layout import ROOT
from nnzoo import cli
from nnzoo.cli import main

COMMANDS = ["demo", "hooks", "lens", "attention", "patch", "trace", "verify", "generate", "serve", "keys"]


def run_nnzoo(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "nnzoo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)


@pytest.fixture
def complaint(capsys):
    """Run a command line that cannot be carried out; give its one line on stderr."""

    def run(*arguments: str) -> str:
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert not out
        assert re.fullmatch(r"nnzoo: .+\n", err)
        return err

    return run


# --- usage -----------------------------------------------------------------------------------------------------------


def test_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nnzoo {version('nnzoo')}\n"


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^ +{command} +\w", out, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_an_example_that_parses(command, capsys):
    assert main([command, "--help"]) == 0
    example = capsys.readouterr().out.partition("example:\n")[2].strip()
    program, *arguments = re.findall(r'"[^"]*"|\S+', example)
    assert program == "nnzoo"
    assert cli.parser().parse_args(arguments).command == command


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main([command, "--help"] if command else ["--help"])
    text = capsys.readouterr().out.partition("example:")[0]
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["cook"],
        ["hooks"],
        ["hooks", "nnzoo/tiny-gpt2", "--layer", "two"],
        ["verify", "x", "--dtype", "int8"],
        ["verify", "x", "--tolerance", "-1"],
        ["verify", "x", "--tolerance", "nan"],
        ["verify", "x", "--tolerance", "inf"],
        ["generate", "x", "y", "--max-new-tokens", "0"],
        ["serve"],
        ["serve", "x", "--port", "70000"],
        ["serve", "x", "--request-bytes", "1T"],
        ["serve", "x", "--request-bytes", ""],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    assert main(arguments) == 2
    assert "usage: nnzoo" in capsys.readouterr().err


def test_python_m_nnzoo_is_the_command():
    run = run_nnzoo("--version")
    assert (run.returncode, run.stdout) == (0, f"nnzoo {version('nnzoo')}\n")


def test_parsing_imports_no_drawing_and_no_transformers():
    code = "import nnzoo.cli, sys; nnzoo.cli.parser(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "nnzoo.cli" in loaded
    assert not {"rich", "transformers", "nnzoo.cli.demo"} & set(loaded)


# --- errors: one line, and what to do --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["demo", "hooks", "verify", "generate", "serve"])
def test_a_model_that_is_nowhere_is_named(command, complaint):
    prompt = ["hello"] if command == "generate" else []
    assert "'no/such/folder' is no folder here" in complaint(command, "no/such/folder", *prompt)


def test_an_embedded_model_that_is_none_brings_up_those_that_are(complaint):
    assert "nnzoo/tiny-gpt2" in complaint("hooks", "nnzoo/tiny-bert")


def test_a_folder_without_config_says_what_it_holds(complaint, tmp_path):
    (tmp_path / "weights.txt").touch()
    error = complaint("hooks", str(tmp_path))
    assert "no config.json" in error
    assert "weights.txt" in error


def test_an_unknown_family_brings_up_those_that_are_known(complaint, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    error = complaint("hooks", str(tmp_path))
    assert '"t5"' in error
    assert "'gpt2', 'llama' and 'mistral'" in error


@pytest.mark.parametrize("command", ["verify", "generate"])
def test_a_pickle_folder_is_refused_with_the_way_to_convert_it(command, complaint, tmp_path):
    shutil.copy(folder("gpt2", "default") / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    error = complaint(command, str(tmp_path), *(["hello"] if command == "generate" else []))
    assert "pytorch_model.bin" in error
    assert "save_pretrained" in error


def test_an_empty_prompt_is_refused(complaint):
    assert "the prompt is empty" in complaint("generate", "nnzoo/tiny-gpt2", "")


def test_a_folder_without_tokenizer_cannot_generate(complaint):
    assert "no tokenizer" in complaint("generate", str(folder("gpt2", "default")), "hello")


def test_a_prompt_and_continuation_beyond_the_context_are_refused(complaint):
    assert "positions" in complaint("generate", "nnzoo/tiny-gpt2", "drink " * 1000)


def test_the_traceback_is_there_for_those_who_ask(monkeypatch):
    monkeypatch.setenv("NNZOO_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        main(["hooks", "no/such/folder"])


def test_an_interruption_exits_with_130(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("nnzoo.cli.hooks.run", interrupted)
    assert main(["hooks", "nnzoo/tiny-gpt2"]) == 130
    assert capsys.readouterr().err == "nnzoo: interrupted\n"


def test_a_mistake_in_nnzoo_keeps_its_traceback(monkeypatch):
    def mistaken(options):
        raise AttributeError("no such attribute")

    monkeypatch.setattr("nnzoo.cli.hooks.run", mistaken)
    with pytest.raises(AttributeError):
        main(["hooks", "nnzoo/tiny-gpt2"])


def test_a_reader_that_leaves_early_gets_no_traceback():
    command = f"{sys.executable} -m nnzoo hooks nnzoo/tiny-gpt2 | head -n 1"
    run = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.count("\n") == 1
    assert not run.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize(("model", "status"), [("nnzoo/tiny-gpt2", 0), ("no/such/folder", 2)])
def test_a_closed_stream_gets_no_traceback(model, status, closed):
    command = f"{sys.executable} -m nnzoo hooks {model} {closed}"
    run = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == status
    assert "Traceback" not in run.stderr
    assert bool(run.stderr) == (status == 2 and "2>&-" not in closed)


def test_no_name_is_not_the_current_folder(complaint, monkeypatch):
    monkeypatch.chdir(folder("gpt2", "default"))
    assert "'' is no folder here" in complaint("hooks", "")


@pytest.mark.parametrize("command", [["generate", "nnzoo/tiny-gpt2"], ["verify", "nnzoo/tiny-gpt2", "--prompt"]])
def test_a_prompt_of_half_characters_is_refused(command, complaint):
    assert "the prompt is not UTF-8: '\\udcff' at character 4" in complaint(*command, "The \udcff")


# --- generate --------------------------------------------------------------------------------------------------------


def test_generate_prints_the_continuation_alone(capsys):
    assert main(["generate", "nnzoo/tiny-gpt2", "The capital of France is", "--max-new-tokens", "1"]) == 0
    assert capsys.readouterr().out == " Paris\n"


def test_generate_reads_a_dash_from_standard_input(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("The capital of France is\n"))
    assert main(["generate", "nnzoo/tiny-gpt2", "-", "--max-new-tokens", "1"]) == 0
    assert capsys.readouterr().out == " Paris\n"


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # Python chooses by the locale
def test_standard_input_that_is_no_utf_8_is_refused(errors, complaint, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"The \xff"), "utf-8", errors))
    assert re.search("the prompt .*is not utf-8", complaint("generate", "nnzoo/tiny-gpt2", "-"), re.IGNORECASE)


def test_a_closed_standard_input_is_refused():
    command = f"{sys.executable} -m nnzoo generate nnzoo/tiny-gpt2 - <&-"
    run = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 2
    assert re.fullmatch("nnzoo: standard input is closed, .+\n", run.stderr)


def test_generate_ends_at_the_end_of_the_text(capsys):
    assert main(["generate", "nnzoo/tiny-gpt2", "The capital of France is"]) == 0
    assert capsys.readouterr().out == " Paris.\n"


def test_generate_samples_the_same_text_from_the_same_seed(capsys):
    texts = []
    for seed in ("1", "1", "2"):
        main(["generate", "nnzoo/tiny-gpt2", "The capital of France is", "--temperature", "5", "--seed", seed])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_generate_ends_with_a_stop_string(capsys):
    assert main(["generate", "nnzoo/tiny-gpt2", "The capital of France is", "--stop", "aris", "--stop", "x"]) == 0
    assert capsys.readouterr().out == " Paris\n"


def test_generate_refuses_a_share_above_one(complaint):
    assert "top_p=1.5 will not do" in complaint("generate", "nnzoo/tiny-gpt2", "hello", "--top-p", "1.5")


def test_generate_in_a_process_of_its_own():
    run = run_nnzoo("generate", "nnzoo/tiny-llama", "-", "--max-new-tokens", "1", input="The capital of France is")
    assert (run.returncode, run.stdout, run.stderr) == (0, " Paris\n", "")
