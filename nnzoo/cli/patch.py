"""`nnzoo patch`: which places of a run carry the answer."""

from argparse import Namespace

from nnzoo import LanguageModel
from nnzoo.analysis import patch_activations
from nnzoo.analysis.results import Entry
from nnzoo.analysis.subject import Subject
from nnzoo.architectures.html import shown
from nnzoo.cli.document import Answer
from nnzoo.cli.generate import utf8
from nnzoo.cli.lens import token_of


def run(options: Namespace) -> int:
    """Patch the corrupted run with values of the clean one, place by place, and show what that restores."""
    model = LanguageModel(options.model)
    subject, clean, corrupted = Subject(model), utf8(options.clean), utf8(options.corrupted)
    right, wrong = token_of(subject, options.answer), token_of(subject, options.wrong)
    check_lengths(subject, clean, corrupted)
    patched = patch_activations(model, corrupted, clean, (right, wrong), at=options.site, by=options.by)
    about = (
        f"One value of the clean run ({clean!r}) put into the corrupted one ({corrupted!r}), at each place in turn. "
        f"0: nothing changes; 1: the logit of {right!r} leads that of {wrong!r} by as much "
        f"as in the clean run. Clean: {patched.source:.2f}, corrupted: {patched.base:.2f}."
    )
    answer = Answer(f"Activation patching of {options.site}: {options.model}", about, options.html)
    answer.add(patched.restored)
    answer.say(f"It restores most at {'; '.join(map(_in_words, patched.restored.top(3)))}.")
    return answer.end()


def check_lengths(subject: Subject, clean: str, corrupted: str) -> None:
    """Raise ValueError where a value of one prompt has no place in the other."""
    tokens = [subject.labels(subject.read(prompt)) for prompt in (clean, corrupted)]
    if len(tokens[0]) != len(tokens[1]):
        pieces = [" ".join(map(shown, one)) for one in tokens]
        raise ValueError(
            f"CLEAN has {len(tokens[0])} tokens ({pieces[0]}) and CORRUPTED {len(tokens[1])} ({pieces[1]}): a value "
            "of one has no place in the other. Give prompts of as many tokens"
        )


def _in_words(entry: Entry) -> str:
    numbers = dict(zip(entry.place, entry.index, strict=True))
    parts = [
        f"{axis} {numbers[axis]}" + ("" if label.isdigit() else f" ({shown(label)})")
        for axis, label in entry.place.items()
    ]
    return f"{', '.join(parts)}: {entry.value:.2f}"
