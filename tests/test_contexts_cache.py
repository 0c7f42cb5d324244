"""A cache holds what hooks on every module of transformers' model see; a scan holds shapes, and nothing is computed."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import speaking
from nnzoo import LanguageModel
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.tracing.recorder import TraceError
from reference_values import Theirs
from snippets import assert_close, on_every_family

SHORT, LONG = "Hello world", "The cat sat on the quick brown dog"
NEVER_CALLED = ("attn_dropout", "resid_dropout", "dropout", "rotary_emb", "wpe")


def ours(family: str = "gpt2", **options: Any) -> LanguageModel:
    return LanguageModel(speaking.folder(family, 3), **options)


def called(theirs: Theirs) -> list[str]:
    """The modules of transformers' model that a pass calls, but those that treat all rows as one."""
    names = [name for name, module in theirs.model.named_modules() if name and not isinstance(module, nn.ModuleList)]
    return [name for name in names if not name.endswith(NEVER_CALLED)]


def first(value: Any) -> Tensor:
    return value[0] if isinstance(value, tuple) else value


class TestCache:
    @on_every_family
    def test_every_module_is_there_after_the_body(self, family: str) -> None:
        model, theirs = ours(family), Theirs(family, 3)
        with model.trace(LONG) as tracer:
            cache = tracer.cache(include_inputs=True)
            block = model.blocks[1]
            block.mlp.output[:] = 0
            block.output[0][:] *= 0.5
        names = called(theirs)
        ends = [f"{name}.{end}" for name in names for end in ("output", "input")]
        edits = {theirs.block(1, "mlp.output"): torch.zeros_like, theirs.block(1): lambda h: h * 0.5}
        seen = theirs.forward(LONG, read=ends, edits=edits)
        assert {f"model.{name}" for name in names} <= {*cache.keys()}
        inside = [f"{theirs.blocks}.1.mlp.{name}" for name in ("c_proj", "down_proj")]  # here the same place as the MLP
        for name in (name for name in names if name not in inside):
            assert_close(first(cache[f"model.{name}"].output), seen[f"{name}.output"])
            assert_close(first(cache[f"model.{name}"].input), seen[f"{name}.input"])
        assert_close(cache["model"].output.logits, seen.logits)

    def test_a_module_answers_by_all_of_its_names(self) -> None:
        model = ours(rename={"transformer.h": "layers", "mlp": "feed_forward"})
        with model.trace(SHORT) as tracer:
            cache = tracer.cache()
            expected = model.transformer.h[1].mlp.output
        for part in (
            cache["model.transformer.h.1.mlp"],
            cache["transformer.h.1.mlp"],
            cache["model.layers.1.feed_forward"],
            cache.model.transformer.h[1].mlp,
            cache.transformer.h[1]["mlp"],
            cache.layers[1].feed_forward,
            cache.blocks[1].mlp,
        ):
            assert torch.equal(part.output, expected) and part.keys()[0] == "model.transformer.h.1.mlp"
        assert "model.layers.1.feed_forward" in cache and "model.transformer.h.9" not in cache
        assert len(cache.transformer.h[1].keys()) == 12 and dict(cache.items()).keys() == {*cache}

    def test_some_modules_by_whatever_names_them(self) -> None:
        model = ours()
        block = model.transformer.h[1]
        for modules, keys in (
            ("transformer.h.1.mlp", ["model.transformer.h.1.mlp"]),
            ("model.lm_head", ["model.lm_head"]),
            (block.mlp, ["model.transformer.h.1.mlp"]),
            ([block.mlp, "lm_head"], ["model.transformer.h.1.mlp", "model.lm_head"]),
            (model.transformer.h, [f"model.transformer.h.{i}" for i in range(3)]),
            (model.transformer.h[1:], [f"model.transformer.h.{i}" for i in (1, 2)]),
            (model, ["model"]),
            (block.attn.hook_z, ["model.transformer.h.1.attn.hook_z"]),
        ):
            with model.trace(SHORT) as tracer:
                cache = tracer.cache(modules=modules)
            assert cache.keys() == keys
        assert cache.blocks[1].attn.hook_z.output.shape == (1, 2, 4, 12)
        with pytest.raises(
            KeyError, match=r"model\.lm_head was not cached; model\.transformer\.h\.1\.attn\.hook_z was"
        ):
            _ = cache.lm_head.output

    def test_patterns_are_computed_only_where_the_module_is_named(self) -> None:
        model, theirs = ours(), Theirs("gpt2", 3)
        listened: list[str] = []
        with model.trace(LONG) as tracer:
            cache = tracer.cache()
            for name, point in model._model.hook_points.items():
                point.add_reader(lambda value, point: listened.append(point.name)) if name.endswith("hook_z") else None
        assert all(cache.transformer.h[i].attn.output[1] is None for i in range(3)) and listened
        assert not any("attn_dropout" in key for key in cache)
        with model.trace(LONG) as tracer:
            cache = tracer.cache(modules=[model.transformer.h[1].attn, "transformer.h.0.attn.attn_dropout"])
        patterns = theirs.patterns(LONG)
        assert_close(cache.transformer.h[1].attn.output[1], patterns[1])
        assert_close(cache.transformer.h[0].attn.attn_dropout.output, patterns[0])

    def test_no_slow_path_is_taken_for_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, calls = ours("llama"), []
        real = torch.nn.functional.scaled_dot_product_attention

        def counted(*args: Any, **kwargs: Any) -> Tensor:
            calls.append(1)
            return real(*args, **kwargs)

        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
        with model.trace(LONG) as tracer:
            tracer.cache(include_inputs=True)
            kept = tracer.cache()
        assert len(calls) == 3 and len(kept) > 20

    def test_an_invokes_cache_is_the_invokes_and_the_traces_is_the_batchs(self) -> None:
        model, theirs = ours(), Theirs("gpt2", 3)
        with model.trace() as tracer:
            batch = tracer.cache(modules=["transformer.h.1"])
            with tracer.invoke(SHORT):
                short = tracer.cache(modules=["transformer.h.1"])
            with tracer.invoke(LONG):
                model.transformer.h[1].output[0][:] *= 2
                long = tracer.cache(modules=["transformer.h.1"])
        place = theirs.block(1)
        expected = {
            SHORT: theirs.forward(SHORT, read=[place])[place],
            LONG: theirs.forward(LONG, read=[place])[place] * 2,
        }
        assert_close(short.transformer.h[1].output[0], expected[SHORT])
        assert_close(long.transformer.h[1].output[0], expected[LONG])
        both = batch.transformer.h[1].output[0]
        assert_close(both[:1, -2:], expected[SHORT])
        assert_close(both[1:], expected[LONG])

    def test_in_a_generation_every_step_that_is_made(self) -> None:
        model, theirs = ours(), Theirs("gpt2", 3)
        ids, seen = theirs.generate(LONG, 5, read=[theirs.block(1), "lm_head.output"])
        with model.generate(LONG, max_new_tokens=5) as tracer:
            cache = tracer.cache()
        part = cache["model.transformer.h.1"]
        assert len(part) == len(part.output) == 5
        for (mine,), stream in zip(part.output, seen[theirs.block(1)], strict=True):
            assert_close(mine, stream)
        for mine, logits in zip(cache.lm_head.output, seen["lm_head.output"], strict=True):
            assert_close(mine[:, -1], logits[:, -1])
        end = int(ids[0, -4])
        n = int((ids[0, -5:] == end).nonzero()[0]) + 1
        with model.generate(LONG, max_new_tokens=5, eos_token_id=end, pad_token_id=0) as tracer:
            cache = tracer.cache(modules=["transformer.h.1", "lm_head"])
        assert len(cache.lm_head) == len(cache.transformer.h[1]) == n
        assert n > 1 or isinstance(cache.lm_head.output, Tensor)

    def test_what_is_kept_can_be_converted(self) -> None:
        model = ours()
        weight = torch.ones(48, dtype=torch.float64, requires_grad=True)
        with model.trace(SHORT) as tracer:
            model.transformer.h[0].output[0][:] += weight
            plain, attached = tracer.cache(), tracer.cache(detach=False)
            small = tracer.cache(dtype=torch.float16, device="cpu")
        assert not plain.transformer.h[1].output[0].requires_grad
        assert not plain.model.output.logits.requires_grad and plain.model.output.requires_grad is False
        assert attached.transformer.h[1].output[0].requires_grad
        assert small.transformer.h[1].output[0].dtype == torch.float16
        assert_close(small.transformer.h[1].output[0].double(), plain.transformer.h[1].output[0], 1e-2)

    def test_the_base_model_answers_by_hugging_faces_name(self) -> None:
        model, theirs = ours(), Theirs("gpt2", 3)
        with model.trace(SHORT) as tracer:
            cache = tracer.cache().save()
        assert_close(
            cache.transformer.output.last_hidden_state,
            theirs.forward(SHORT, read=["transformer.output"])["transformer.output"],
        )

    @pytest.mark.parametrize("family", ["llama", "mistral"])
    def test_a_path_that_begins_with_model_may_be_written_as_attributes(self, family: str) -> None:
        model = LanguageModel(f"nnzoo/tiny-{family}")
        with model.trace(torch.tensor([[3, 1, 4]])) as tracer:
            cache = tracer.cache()
        mlp = cache["model.model.layers.1.mlp"].output
        assert mlp is cache.model.layers[1].mlp.output is cache.model.model.layers[1].mlp.output
        assert torch.equal(cache.model.output, cache.model.lm_head.output)
        with pytest.raises(AttributeError, match="no module 'layer'; did you mean layers"):
            _ = cache.model.layer

    def test_what_cannot_be_is_refused(self) -> None:
        model = ours()
        for body, error, complaint in (
            (lambda tracer: tracer.cache(include_output=False), ValueError, "keeps nothing"),
            (lambda tracer: tracer.cache(modules=["transformer.h.1.mpl"]), KeyError, "did you mean mlp"),
            (lambda tracer: tracer.cache(modules=["transformer.h.7"]), KeyError, "3 blocks"),
            (lambda tracer: tracer.cache(modules=3), TypeError, "modules"),
            (lambda tracer: tracer.cache(modules=[ours().lm_head]), ValueError, "another model"),
            (lambda tracer: tracer.cache().lm_head.output, TraceError, "when the block of its trace ends"),
        ):
            with pytest.raises(error, match=complaint), model.trace(SHORT) as tracer:
                body(tracer)
        with model.trace(SHORT) as tracer:
            cache = tracer.cache()
        for ask, kind, complaint in (
            (lambda: cache.lm_head.input, KeyError, "include_inputs=True"),
            (lambda: cache.output, KeyError, "the cache itself"),
            (lambda: cache["model.transformer.h.7"], KeyError, "3 blocks"),
            (lambda: cache.transformer.h.output, KeyError, "was not cached"),
            (lambda: cache.transformer.hh, AttributeError, "did you mean"),
            (lambda: cache.lm_head.weight, AttributeError, "no module"),
        ):
            with pytest.raises(kind, match=complaint):
                ask()
        assert "modules: model" in repr(cache) and bool(cache)


class TestScan:
    @on_every_family
    def test_shapes_are_those_of_a_pass(self, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
        theirs = Theirs(family, 3)
        places = [f"{name}.output" for name in called(theirs)]
        seen = theirs.forward(LONG, read=places)
        model = ours(family)
        monkeypatch.setattr(HookedModel, "begin", lambda *args: pytest.fail("nothing is to be computed"))
        with model.scan(LONG, validate=True) as tracer:
            inside = {name: tuple(first(model.get(name).output).shape) for name in called(theirs)}
            cache = tracer.cache()
            logits = model.output
        assert model._native is None, "no weight was read"
        for name in called(theirs):
            assert inside[name] == first(cache[f"model.{name}"].output).shape == seen[f"{name}.output"].shape
            assert (
                first(cache[f"model.{name}"].output).is_meta
                and first(cache[f"model.{name}"].output).dtype == torch.float64
            )
        assert type(logits) is Tensor and logits.is_meta and logits.logits.shape == seen.logits.shape

    def test_operations_and_modules_work(self) -> None:
        model = ours()
        with model.scan() as tracer:
            with tracer.invoke(SHORT):
                lens = model.lm_head(model.transformer.ln_f(model.transformer.h[1].output[0])).softmax(-1)
                top = lens.topk(5, -1)
                model.transformer.h[2].output[0][:, -1] = model.transformer.h[1].output[0][:, 0]
            with tracer.invoke(LONG):
                loss = model.output.logits[0, -1].log_softmax(-1)[3]
                loss.backward()
                gradient = model.transformer.h[0].output[0].grad
        assert lens.is_meta and lens.shape == (1, 2, 811) and top.values.shape == (1, 2, 5) and gradient.is_meta
        assert model._native is None

    def test_a_generation_has_all_its_steps(self) -> None:
        model, shapes = ours(), []
        with model.scan(SHORT) as tracer:
            ids = model.generate(max_new_tokens=3, eos_token_id=5)
            for _ in tracer.iter[:]:
                shapes.append(tuple(model.transformer.h[1].attn.output[1].shape))
        assert shapes == [(1, 4, 2, 2), (1, 4, 1, 3), (1, 4, 1, 4)]
        with pytest.raises(TraceError, match="a scan, and its shape depends on numbers"):
            _ = ids + 1

    @pytest.mark.parametrize(
        "look", [float, bool, str, lambda h: h.argmax().item(), lambda h: h[h > 0], lambda h: h.tolist()]
    )
    def test_a_look_is_refused(self, look: Any) -> None:
        model = ours()
        with pytest.raises(TraceError, match=r"a scan computes nothing.*model\.trace"), model.scan(SHORT):
            look(model.transformer.h[1].output[0].sum())
        with model.trace(SHORT) as tracer:
            assert tracer.result.shape == (1, 2, 811), "the model is as it was"

    def test_a_wrong_shape_is_an_error_at_its_line(self) -> None:
        model = ours()
        with pytest.raises(RuntimeError, match="48"), model.scan(SHORT):
            _ = model.transformer.h[1].output[0] @ torch.zeros(7, 7).double()
