"""Traces through a server: their graphs are run by its workers, and come back as they are found in this process."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from nnzoo import LanguageModel
from nnzoo.remote.protocol import pack
from remote_http import Client

PROMPTS = ["The capital of France is", "Two", "The capital of Germany is what", "drink", "The keys"]


@pytest.fixture(scope="module")
def model():
    return LanguageModel("nnzoo/tiny-gpt2")


def traced(model: LanguageModel, prompt: str, scale: float) -> tuple[bytes, torch.Tensor]:
    """A request, and the logits that it is to give."""
    with model.trace(prompt) as tracer:
        model.transformer.h[1].output[0][:] *= scale
        logits = model.output[0, -1].save()
        graph = tracer.graph
    return pack("request", {"model": "nnzoo/tiny-gpt2", "graph": graph.to_json()}, graph.tensors), logits


def test_many_clients_at_once_get_each_their_own(model, server):
    def client(number: int) -> bool:
        with Client(server.url, key=f"key {number}") as http:
            ids = [http.queue(request) for request, _ in jobs[number]]
            answers = [http.answer(id) for id in ids]
        pairs = zip(answers, jobs[number], strict=True)
        return all(torch.allclose(*answer.tensors.values(), logits, atol=1e-5) for answer, (_, logits) in pairs)

    jobs = [[traced(model, prompt, 1 + number / 4) for prompt in PROMPTS] for number in range(10)]
    with ThreadPoolExecutor(10) as pool:
        assert all(pool.map(client, range(10)))


def test_a_graph_that_is_none_is_answered_and_the_worker_stays(server):
    before = server.workers()
    with Client(server.url) as http:
        answer = http.answer(http.queue(pack("request", {"model": "nnzoo/tiny-gpt2", "graph": "{]"})))
    assert (answer.kind, answer.fields["code"]) == ("error", "graph")
    assert server.workers() == before
