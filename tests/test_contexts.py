"""Sessions, traces in traces, and what goes wrong in a body leaves the model as it was."""

import asyncio
import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import nnzoo
import speaking
from nnzoo import CONFIG, LanguageModel
from nnzoo.config import Config
from nnzoo.remote.errors import NoServer
from nnzoo.tracing.recorder import TraceError
from reference_values import Theirs
from snippets import assert_close

SHORT, LONG = "Hello world", "The cat sat on the quick brown dog"


@pytest.fixture
def model() -> LanguageModel:
    return LanguageModel(speaking.folder("gpt2", 3))


@pytest.fixture(scope="module")
def theirs() -> Theirs:
    return Theirs("gpt2", 3)


def works(model: LanguageModel, theirs: Theirs) -> bool:
    """Whether a trace of the model gives what it should, with no trace open, nobody listening and no lock held."""
    assert model._tracer.get() is None and model._session.get() is None
    assert not any(point.hooks for point in model._model.hook_points.values())
    free: list[bool] = []

    def take() -> None:
        free.append(model.lock.acquire(blocking=False))
        if free[0]:
            model.lock.release()

    other = threading.Thread(target=take)
    other.start()
    other.join()
    with model.trace(SHORT):
        logits = model.output
    assert_close(logits, theirs.forward(SHORT).logits)
    return free == [True]


class TestSession:
    def test_values_flow_on_saved_or_not(self, model: LanguageModel, theirs: Theirs) -> None:
        with model.session() as session:
            with model.trace(LONG):
                last = model.transformer.h[1].output[0][:, -1]
                saved = nnzoo.save(model.transformer.h[0].output[0][:, -1])
            if last.norm() > saved.norm() * 1000:
                pytest.fail("numbers are there between the traces")
            with model.trace(SHORT):
                model.transformer.h[0].output[0][:, -1] = last + saved
                logits = model.output
            ids = model.generate(SHORT, max_new_tokens=2)
        places = [theirs.block(1), theirs.block(0)]
        seen = theirs.forward(LONG, read=places)
        shift = seen[places[0]][:, -1] + seen[places[1]][:, -1]
        edits = {theirs.block(0): lambda h: torch.cat([h[:, :-1], shift[:, None]], 1)}
        assert_close(logits, theirs.forward(SHORT, edits=edits).logits)
        assert torch.equal(ids, theirs.generate(SHORT, 2)[0]) and session is not None

    def test_what_is_made_between_its_traces_is_saved(self, model: LanguageModel, theirs: Theirs) -> None:
        with model.session():
            with model.trace(LONG):
                stream = model.transformer.h[1].output[0]
                zeros = torch.zeros(2).save()
            mean = stream.mean(1).save()
        assert_close(mean, theirs.forward(LONG, read=[theirs.block(1)])[theirs.block(1)].mean(1))
        assert not zeros.any()

    @pytest.mark.local("in a remote session, values are there when it has ended")
    def test_edits_may_be_made_in_it(self, model: LanguageModel, theirs: Theirs) -> None:
        with model.session():
            with model.trace(SHORT):
                last = model.transformer.h[1].output[0][:, -1:]
            with model.edit() as edited:
                edited.transformer.h[1].output[0][:] += last
            with edited.trace(LONG):
                logits = edited.output
        shift = theirs.forward(SHORT, read=[theirs.block(1)])[theirs.block(1)][:, -1:]
        assert_close(logits, theirs.forward(LONG, edits={theirs.block(1): lambda h: h + shift}).logits)

    @pytest.mark.local("that there is no server is said of local sessions")
    def test_what_cannot_be_is_refused(self, model: LanguageModel, theirs: Theirs) -> None:
        with pytest.raises(NoServer, match="remote=True needs a server"):
            model.session(remote=True)
        with pytest.raises(TraceError, match="a session inside a session"), model.session(), model.session():
            pass
        with pytest.raises(TraceError, match="a session inside a trace"), model.trace(SHORT), model.session():
            pass
        session = model.session()
        with session:
            pass
        with pytest.raises(TraceError, match="entered once"), session:
            pass
        assert works(model, theirs)

    def test_one_without_a_model_holds_traces_of_any(self, model: LanguageModel, theirs: Theirs) -> None:
        other = LanguageModel(speaking.folder("llama", 3))
        with nnzoo.session():
            with model.trace(SHORT):
                last = model.transformer.h[1].output[0][:, -1]
            with other.trace(SHORT):
                size = other.output.norm()
            with model.trace(SHORT):
                model.transformer.h[0].output[0][:, -1] = last * size
                logits = model.output
        place, norm = theirs.block(1), Theirs("llama", 3).forward(SHORT).logits.norm()
        put = theirs.forward(SHORT, read=[place])[place][:, -1] * norm
        edits = {theirs.block(0): lambda h: torch.cat([h[:, :-1], put[:, None]], 1)}
        assert_close(logits, theirs.forward(SHORT, edits=edits).logits)

    @pytest.mark.local("that there is no server is said of local sessions")
    def test_one_without_a_model_is_alone(self, model: LanguageModel, theirs: Theirs) -> None:
        for inner in (nnzoo.session, model.session):
            with pytest.raises(TraceError, match=r"a session inside nnzoo\.session"), nnzoo.session(), inner():
                pass
        with pytest.raises(ZeroDivisionError), nnzoo.session():
            _ = 1 / 0
        with pytest.raises(NoServer, match="remote=True needs a server"):
            nnzoo.session(remote=True)
        assert works(model, theirs)

    @pytest.mark.local("after a remote session that failed, nothing is there")
    def test_an_error_in_it_ends_it(self, model: LanguageModel, theirs: Theirs) -> None:
        with pytest.raises(ZeroDivisionError), model.session():
            with model.trace(SHORT):
                kept = model.output
            _ = 1 / 0
        assert_close(kept, theirs.forward(SHORT).logits)
        assert works(model, theirs)


class TestTracesInTraces:
    def test_of_one_model(self, model: LanguageModel, theirs: Theirs) -> None:
        with model.trace(LONG):
            outer = model.transformer.h[1].output[0]
            with model.trace(SHORT):
                inner = model.transformer.h[1].output[0][:, -1]
            model.transformer.h[1].output[0][:, -1] = inner * 2
            logits = model.output
        place = theirs.block(1)
        last = theirs.forward(SHORT, read=[place])[place][:, -1] * 2
        edits = {place: lambda h: torch.cat([h[:, :-1], last[:, None]], 1)}
        seen = theirs.forward(LONG, edits=edits, read=[place])
        assert_close(logits, seen.logits)
        assert_close(outer, seen[place])

    def test_after_a_look_too(self, model: LanguageModel, theirs: Theirs) -> None:
        with model.trace(LONG):
            assert model.transformer.h[0].output[0].norm() > 0
            with model.trace(SHORT):
                model.transformer.h[0].output[0][:] = 0
                inner = model.output
            logits = model.output
        assert_close(logits, theirs.forward(LONG).logits)
        assert_close(inner, theirs.forward(SHORT, edits={theirs.block(0): torch.zeros_like}).logits)

    def test_of_two_models(self, model: LanguageModel, theirs: Theirs) -> None:
        llama, their_llama = LanguageModel(speaking.folder("llama", 3)), Theirs("llama", 3)
        with model.trace(LONG):
            mine = model.output
            with llama.trace(LONG):
                other = llama.model.layers[1].output[0][:, -1]
                last = llama.output
            model.transformer.h[1].output[0][:, -1] = other
            logits = model.output
        seen = their_llama.forward(LONG, read=["model.layers.1.output"])
        new = seen["model.layers.1.output"][:, -1]
        edits = {theirs.block(1): lambda h: torch.cat([h[:, :-1], new[:, None]], 1)}
        assert_close(last, seen.logits)
        assert_close(logits, theirs.forward(LONG, edits=edits).logits)
        assert mine is not logits

    @pytest.mark.parametrize("use", [lambda a, b: a + b, lambda a, b: b.copy_(a), lambda a, b: torch.cat([b, a])])
    def test_values_of_one_are_not_the_others_before_it_has_run(self, model: LanguageModel, use: Any) -> None:
        other = LanguageModel(speaking.folder("gpt2", 3))
        for second in (model, other):
            with pytest.raises(TraceError, match=r"made at .*test_contexts\.py.*another trace, which has not run yet"):
                with model.trace(SHORT):
                    one = model.transformer.h[1].output[0]
                    with second.trace(SHORT):
                        use(one, second.transformer.h[1].output[0])
        with pytest.raises(TraceError, match="another trace"), model.trace(SHORT):
            one = model.transformer.h[1].output[0]
            with other.trace(SHORT):
                other.transformer.h[1].output[0] = one

    def test_one_trace_is_entered_once(self, model: LanguageModel, theirs: Theirs) -> None:
        trace = model.trace(SHORT)
        with trace:
            kept = model.output
        with pytest.raises(TraceError, match="entered once"), trace:
            pass
        with pytest.raises(TraceError, match="entered once"), model.trace(SHORT) as again, again:
            pass
        assert_close(kept, theirs.forward(SHORT).logits)
        assert works(model, theirs)

    def test_an_invoke_of_the_outer_one_waits_for_the_inner_one(self, model: LanguageModel, theirs: Theirs) -> None:
        with pytest.raises(TraceError, match="body is not running"), model.trace() as outer:
            with model.trace(SHORT), outer.invoke(SHORT):
                pass
        assert works(model, theirs)


class TestWhatGoesWrong:
    @pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_in_the_body(self, model: LanguageModel, theirs: Theirs, kind: type[BaseException]) -> None:
        for open_one in (lambda: model.trace(SHORT), lambda: model.generate(SHORT, max_new_tokens=2), model.trace):
            with pytest.raises(kind), open_one() as tracer:
                if open_one == model.trace:
                    with tracer.invoke(SHORT):
                        kept = model.output
                        raise kind
                kept = model.output
                raise kind
            with pytest.raises(TraceError, match="a trace that ended with an error"):
                _ = kept + 1
        assert works(model, theirs)

    @pytest.mark.local("a function of the user's is code, which is not sent")
    def test_during_the_run(self, model: LanguageModel, theirs: Theirs) -> None:
        def interrupted(x: Tensor) -> Tensor:
            if x.is_meta:
                return x
            raise KeyboardInterrupt

        for open_one in (lambda: model.trace(LONG), lambda: model.generate(LONG, max_new_tokens=3)):
            with pytest.raises(KeyboardInterrupt), open_one() as tracer:
                kept = tracer.recorder.record(interrupted, (model.transformer.h[1].output[0],), {})
            assert works(model, theirs)
        with pytest.raises(KeyboardInterrupt), model.trace(LONG) as tracer:
            print(tracer.recorder.record(interrupted, (model.transformer.h[1].output[0],), {}))
        del kept
        assert works(model, theirs)

    def test_while_an_invoke_begins(self, model: LanguageModel, theirs: Theirs) -> None:
        with model.edit() as edited:
            edited.transformer.h[1].output[0][:, 5] = 0
        with pytest.raises(IndexError), edited.trace() as tracer, tracer.invoke(SHORT):
            pass
        assert works(model, theirs)

    def test_a_prompt_that_is_none_opens_nothing(self, model: LanguageModel, theirs: Theirs) -> None:
        for wrong in ("", [], {"a": 1}):
            with pytest.raises((ValueError, TypeError)):
                model.trace(wrong).__enter__()
        assert works(model, theirs)


class TestOtherBodies:
    def test_generators_end_in_any_order(self, model: LanguageModel, theirs: Theirs) -> None:
        def body(prompt: str) -> Iterator[Tensor]:
            with model.trace(prompt):
                logits = model.output
                yield logits
            yield logits

        first, second = body(SHORT), body(LONG)
        one, two = next(first), next(second)
        assert model.output.shape[1] == two.shape[1], "the trace that was opened last is the one that is spoken of"
        assert next(first) is one and type(one) is Tensor
        assert next(second) is two and type(two) is Tensor
        assert_close(one, theirs.forward(SHORT).logits)
        assert_close(two, theirs.forward(LONG).logits)
        assert works(model, theirs)

    def test_a_generator_that_is_left_leaves_nothing_behind(self, model: LanguageModel, theirs: Theirs) -> None:
        def body() -> Iterator[Tensor]:
            with model.trace(SHORT):
                yield model.output

        generator = body()
        kept = next(generator)
        del generator
        gc.collect()
        with pytest.raises(TraceError, match="ended with an error"):
            _ = kept + 1
        assert works(model, theirs)

    def test_coroutines_have_a_body_each(self, model: LanguageModel, theirs: Theirs) -> None:
        async def body(prompt: str, scale: float) -> Tensor:
            with model.trace(prompt):
                await asyncio.sleep(0)
                model.transformer.h[1].output[0][:] *= scale
                await asyncio.sleep(0)
                logits = model.output
            return logits

        async def both() -> list[Tensor]:
            return await asyncio.gather(body(SHORT, 2), body(LONG, 3))

        for logits, prompt, scale in zip(asyncio.run(both()), (SHORT, LONG), (2, 3), strict=True):
            expected = theirs.forward(prompt, edits={theirs.block(1): lambda h, scale=scale: h * scale}).logits
            assert_close(logits, expected)
        assert works(model, theirs)

    def test_threads_have_a_body_each(self, model: LanguageModel, theirs: Theirs) -> None:
        barrier, found = threading.Barrier(4), {}

        def body(number: int) -> None:
            prompt = (SHORT, LONG)[number % 2]
            barrier.wait()
            for _ in range(3):
                with model.trace(prompt):
                    hidden = model.transformer.h[1].output[0]
                    assert hidden.norm() > 0
                    hidden[:] *= number + 1
                    logits = model.output
                ids = model.generate(prompt, max_new_tokens=2)
            found[number] = (prompt, logits, ids)

        threads = [threading.Thread(target=body, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        for number, (prompt, logits, ids) in found.items():
            edits = {theirs.block(1): lambda h, number=number: h * (number + 1)}
            assert_close(logits, theirs.forward(prompt, edits=edits).logits)
            assert torch.equal(ids, theirs.generate(prompt, 2)[0])
        assert works(model, theirs)


class TestSmallThings:
    def test_a_call_without_a_body(self, model: LanguageModel, theirs: Theirs) -> None:
        out = model.trace(SHORT, trace=False)
        assert_close(out.logits, theirs.forward(SHORT).logits)
        assert out.loss is None
        ids = theirs.ids(SHORT)
        assert model.trace(ids, trace=False, labels=ids).loss > 0
        with pytest.raises(ValueError, match="there is no body"):
            model.trace(SHORT, trace=False, max_batch=3)

    def test_contexts_are_a_whole_models(self, model: LanguageModel) -> None:
        for name in ("trace", "scan", "session", "edit", "generate", "clear_edits"):
            with pytest.raises(AttributeError, match=rf"model\.{name}\("):
                getattr(model.transformer.h[1], name)

    def test_the_config_knows_the_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("NDIF_API_KEY", raising=False)
        monkeypatch.delenv("NDIF_HOST", raising=False)
        config = Config()
        assert config.API.APIKEY is None and config.API.HOST is None
        monkeypatch.setenv("NDIF_API_KEY", "from the environment")
        monkeypatch.setenv("NDIF_HOST", "http://localhost:5000")
        assert (config.API.APIKEY, config.API.HOST) == ("from the environment", "http://localhost:5000")
        config.set_default_api_key(" mine ")
        config.API.HOST = "http://elsewhere"
        assert (config.API.APIKEY, config.API.HOST) == ("mine", "http://elsewhere")
        assert "mine" not in repr(config) and "elsewhere" in repr(config)
        with pytest.raises(ValueError, match="an API key is a text"):
            config.set_default_api_key("")
        assert isinstance(CONFIG, Config)
