"""`nnzoo hooks`: each hook point once, and what is said of it is so."""

import re

import torch

from families import PLAIN, folder, ids, prompt
from nnzoo import LanguageModel
from nnzoo.cli import main

LINE = re.compile(r"^(\S+) {2,}(\S.*\S) {2,}\[(.*)\]$", re.MULTILINE)


def lines(text: str) -> dict[str, tuple[str, str]]:
    """Name, shape in symbols and shape in numbers of each hook point; every name may come once."""
    found = LINE.findall(text)
    assert len({name for name, _, _ in found}) == len(found)
    return {name: (axes.strip(), numbers) for name, axes, numbers in found}


def listed(capsys, *arguments: str) -> str:
    assert main(["hooks", *arguments]) == 0
    return capsys.readouterr().out


@ids(PLAIN)
def test_every_hook_point_is_listed_once(family, setting, capsys):
    model = LanguageModel(folder(family, setting)).skeleton
    names = {re.sub(r"^blocks\.\d+", "blocks.i", name) for name in model.hook_points}
    assert lines(listed(capsys, str(folder(family, setting)))).keys() == names


@ids(PLAIN)
def test_a_layers_hook_points_are_listed_with_its_number(family, setting, capsys):
    model = LanguageModel(folder(family, setting)).skeleton
    names = {name for name in model.hook_points if name.startswith("blocks.2.")}
    assert lines(listed(capsys, str(folder(family, setting)), "--layer", "2")).keys() == names


@ids(PLAIN)
def test_shapes_in_numbers_are_those_of_a_pass(family, setting, capsys):
    model = LanguageModel(folder(family, setting))._model
    shown = lines(listed(capsys, str(folder(family, setting)), "--layer", "1"))
    _, cache = model.run_with_cache(prompt(1, 5), names_filter=list(shown))
    for name, (_, numbers) in shown.items():
        sizes = [{"batch": "1"}.get(size, re.sub("^[a-z].*", "5", size)) for size in numbers.split(", ")]
        assert sizes == [str(size) for size in cache[name].shape]


@ids(PLAIN)
def test_what_a_place_is_in_a_trace_is_what_stands_there(family, setting, capsys):
    """Each line below a hook point is evaluated in a trace, and has the values of the hook point."""
    model = LanguageModel(folder(family, setting))
    text = listed(capsys, str(folder(family, setting)), "--layer", "1")
    tokens, name, checked = prompt(1, 5), "", 0
    for line in text.splitlines():
        name = match[1] if (match := LINE.match(line)) else name
        if not match and not line.startswith("    large:"):
            expression = line.strip().partition("   as ")[0]
            with model.trace(tokens):
                value = eval(f"model.{expression}", {"model": model}).save()
            stands_there = model._model.run_with_cache(tokens, names_filter=name)[1][name]
            torch.testing.assert_close(value.flatten(), stands_there.flatten())
            checked += 1
    assert checked > 15


def test_no_weights_are_needed(capsys, tmp_path):
    (tmp_path / "config.json").write_bytes((folder("llama", "default") / "config.json").read_bytes())
    assert "blocks.i.attn.hook_pattern" in listed(capsys, str(tmp_path))


def test_a_layer_that_is_not_there_is_refused(capsys):
    assert main(["hooks", str(folder("gpt2", "default")), "--layer", "3"]) == 2
    assert "blocks 0 to 2" in capsys.readouterr().err


def test_lines_stay_whole_in_a_pipe(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert len(lines(listed(capsys, str(folder("gpt2", "default"))))) > 30
