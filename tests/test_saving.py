"""`.save()` of Python's own values, and what is put into a saved list or dict later: here and remote."""

import subprocess
import sys
from typing import Any

from remote_programs import PROMPT
from test_remote_trace import Pair, assert_same, every_family, pair, weightless

__all__ = ["pair", "weightless"]  # fixtures


def filling(model: Any, **how: Any) -> dict[str, Any]:
    with model.trace(PROMPT, **how):
        streams: Any = list()  # noqa: C408  # as nnsight's programs write it
        streams = streams.save()
        by_name: Any = {}
        by_name.save()
        for layer in range(2):
            streams.append(model.blocks[layer].output[0])
        by_name["logits"] = {"last": model.output[:, -1]}
        width: Any = streams[0].shape[-1]
        width.save()
    return {"streams": streams, "logits": by_name["logits"]["last"], "width": width}


def generating(model: Any, **how: Any) -> dict[str, Any]:
    with model.generate(PROMPT, max_new_tokens=3, **how) as tracer:
        chosen: Any = []
        chosen.save()
        for _ in tracer.all():
            chosen.append(model.lm_head.output[:, -1].argmax(-1))
    return {"chosen": chosen}


def in_a_session(model: Any, **how: Any) -> dict[str, Any]:
    with model.session(**how):
        kept: Any = []
        kept.save()
        for prompt in (PROMPT, "The capital"):
            with model.trace(prompt):
                kept.append(model.blocks[1].output[0][:, -1])
    return {"kept": kept}


@every_family
def test_what_is_put_into_a_saved_list_is_saved(pair: Pair) -> None:
    for body in (filling, generating, in_a_session):
        ours, theirs = pair.both(body)
        assert_same(ours, theirs)


def test_what_is_in_a_list_that_is_not_saved_does_not_come_back(pair: Pair) -> None:
    with pair.there.trace(PROMPT, remote=True):
        saved: Any = [pair.there.blocks[0].output[0]]
        saved.save()
        other = [pair.there.blocks[1].output[0]]
    with pair.there.trace(PROMPT, remote=True):
        later = [pair.there.blocks[0].output[0].save(), pair.there.blocks[1].output[0]]
    assert type(saved[0]).__name__ == type(later[0]).__name__ == "Tensor"
    assert type(other[0]).__name__ == type(later[1]).__name__ == "LazyTensor"


def test_python_is_left_as_it_is_until_there_is_a_model() -> None:
    code = """
import nnzoo
values = [[1], {"a": 1}, (1,), {1}, 1, 1.5, "a", True]
assert not any(hasattr(value, "save") for value in values)
model = nnzoo.LanguageModel("nnzoo/tiny-gpt2")
assert [value.save() is value for value in values] == [True] * len(values)
class Own(list):
    def save(self): return "own"
assert Own().save() == "own" and not hasattr(None, "save")
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_another_librarys_save_of_every_object_is_heard_of() -> None:
    code = """
import ctypes, gc, torch, nnzoo
nnzoo.LanguageModel("nnzoo/tiny-gpt2")
heard = []
def theirs(value):
    if not running:
        raise ValueError("save() was called outside a trace")
    heard.append(value)
gc.get_referents(object.__dict__)[0]["save"] = theirs
ctypes.pythonapi.PyType_Modified(ctypes.py_object(object))
tensor, values = torch.zeros(2), [1]
running = False
assert tensor.save() is tensor and values.save() is values and not heard
running = True
assert tensor.save() is tensor and values.save() is values
assert heard[0] is tensor and heard[1] is values
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_number_that_was_looked_at_can_be_saved(pair: Pair) -> None:
    with pair.here.trace(PROMPT):
        norm: Any = pair.here.output.norm().item()
        kept = norm.save()
    assert kept is norm and kept.value == norm > 0
