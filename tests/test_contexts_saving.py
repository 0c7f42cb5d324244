"""Values of a block of steps, and what `nnzoo.save` marks in whatever it is given."""

from typing import Any

import pytest
import torch
from torch import Tensor

import nnzoo
import speaking
from nnzoo import LanguageModel
from reference_values import Theirs
from snippets import assert_close

SHORT, LONG = "Hello world", "The cat sat on the quick brown dog"


@pytest.fixture
def model() -> LanguageModel:
    return LanguageModel(speaking.folder("gpt2", 3))


@pytest.fixture(scope="module")
def theirs() -> Theirs:
    return Theirs("gpt2", 3)


class TestStepsOfABlock:
    def test_what_was_read_before_stays_of_its_step(self, model: LanguageModel, theirs: Theirs) -> None:
        with model.generate(LONG, max_new_tokens=3) as tracer:
            first = model.transformer.h[1].output[0]
            with tracer.iter[:]:
                now = model.transformer.h[1].output[0]
                shift = nnzoo.save(now[:, -1] - first[:, -1])
                now[:] *= 0.5
                after = nnzoo.save(model.transformer.h[1].output[0][:, -1])
        place = theirs.block(1)
        _, seen = theirs.generate(LONG, 3, read=[place], edits={place: lambda h: h * 0.5}, steps=range(3))
        lasts = [stream[:, -1] for stream in seen[place]]
        for mine, last, changed in zip(shift, lasts, after, strict=True):
            assert_close(changed, last)
            before = lasts[0] * 2 if last is lasts[0] else lasts[0]  # the same memory, which the first step has edited
            assert_close(mine + before, last * 2)

    def test_sizes_are_those_of_each_step(self) -> None:
        model, theirs = LanguageModel(speaking.folder("llama", 3)), Theirs("llama", 3)
        with model.generate(LONG, max_new_tokens=3) as tracer:
            with tracer.iter[:]:
                queries = model.model.layers[1].self_attn.q_proj.output
                batch, pos, width = queries.shape
                heads = nnzoo.save(queries.view(batch, pos, 4, width // 4)[:, pos - 1])
        place = "model.layers.1.self_attn.q_proj.output"
        _, seen = theirs.generate(LONG, 3, read=[place])
        for mine, value in zip(heads, seen[place], strict=True):
            assert_close(mine, value[:, -1].view(1, 4, 12))


class TestSave:
    def test_it_marks_what_is_lazy_in_anything(self, model: LanguageModel) -> None:
        kept: list[Any] = nnzoo.save([])
        with model.trace(SHORT) as tracer:
            blocks = {"streams": [block.output[0] for block in model.transformer.h], "n": (3, "text")}
            assert nnzoo.save(blocks) is blocks
            assert all(lazy._node in tracer.recorder.saved for lazy in blocks["streams"])
            kept.append(nnzoo.save(model.output))
            assert nnzoo.save(7) == 7 and nnzoo.save(None) is None
        assert type(kept[0]) is Tensor and all(type(one) is Tensor for one in blocks["streams"])

    def test_in_a_block_of_steps_gives_one_value_a_step(self, model: LanguageModel) -> None:
        with model.generate(SHORT, max_new_tokens=3) as tracer:
            with tracer.iter[:]:
                one = nnzoo.save(model.lm_head.output)
                several = nnzoo.save({"logits": model.lm_head.output})
        assert len(one) == len(several["logits"]) == 3
        assert torch.equal(one[2], several["logits"][2])
