"""The snippets of the API reference that run a model more than once, or backwards: invokes, generation, gradients."""

import pytest
import torch
from torch import Tensor

import speaking
from reference_values import Theirs
from snippets import assert_close, on_every_family, on_llama_and_mistral, run

# --- Multiple prompts ------------------------------------------------------------------------------------------------


@on_every_family
def test_invokes(family: str) -> None:
    snippet = """
with model.trace() as tracer:
    with tracer.invoke("First prompt"):
        hidden1 = model.transformer.h[5].output[0].save()

    with tracer.invoke("Second prompt"):
        hidden2 = model.transformer.h[5].output[0].save()
"""
    scope, theirs = run(snippet, family), Theirs(family)
    for name, prompt in (("hidden1", "First prompt"), ("hidden2", "Second prompt")):
        assert_close(scope[name], theirs.forward(prompt, read=[theirs.block(5)])[theirs.block(5)])


CROSS_PROMPT = """
with model.trace() as tracer:
    # Get activations from first prompt
    with tracer.invoke("The cat sat on the"):
        cat_hidden = model.transformer.h[6].output[0].save()

    # Inject into second prompt
    with tracer.invoke("The dog ran through the"):
        model.transformer.h[6].output[0][:] = cat_hidden
        output = model.output.save()
"""


@on_every_family
def test_intervention_across_prompts(family: str) -> None:
    scope, theirs = run(CROSS_PROMPT, family), Theirs(family)
    cat = theirs.forward("The cat sat on the", read=[theirs.block(6)])
    assert_close(scope["cat_hidden"], cat[theirs.block(6)])
    edits = {theirs.block(6): lambda h: cat[theirs.block(6)]}
    assert_close(scope["output"], theirs.forward("The dog ran through the", edits=edits).logits)


@on_every_family
@pytest.mark.parametrize(("source", "target"), [(6, 2), (2, 6), (0, 5), (5, 0)])
def test_intervention_across_prompts_from_any_layer_into_any(family: str, source: int, target: int) -> None:
    first, second = CROSS_PROMPT.split("# Inject")
    snippet = first.replace("h[6]", f"h[{source}]") + "# Inject" + second.replace("h[6]", f"h[{target}]")
    scope, theirs = run(snippet, family), Theirs(family)
    cat = theirs.forward("The cat sat on the", read=[theirs.block(source)])[theirs.block(source)]
    edits = {theirs.block(target): lambda h: cat}
    assert_close(scope["output"], theirs.forward("The dog ran through the", edits=edits).logits)


# --- Generation ------------------------------------------------------------------------------------------------------


GENERATION = """
with model.trace() as tracer:
    with tracer.invoke("Once upon a time"):
        # Intervention during generation
        model.transformer.h[5].output[0][:] *= 1.2

        output = model.generate(max_new_tokens=50)

print(model.tokenizer.decode(output[0]))
"""


@on_every_family
def test_generation(family: str, capsys: pytest.CaptureFixture) -> None:
    scope, theirs = run(GENERATION, family), Theirs(family)
    expected, _ = theirs.generate("Once upon a time", 50, edits={theirs.block(5): lambda h: h * 1.2})
    assert type(scope["output"]) is Tensor and torch.equal(scope["output"], expected)
    assert capsys.readouterr().out == theirs.tokenizer.decode(expected[0]) + "\n"


@on_every_family
def test_generation_is_changed_at_the_prompt_and_there_only(family: str) -> None:
    """The factor of the reference leaves the greedy tokens of these models as they are; this one does not."""
    scope, theirs = run(GENERATION.replace("1.2", "-2").replace("50", "20"), family), Theirs(family)
    edits = {theirs.block(5): lambda h: h * -2}
    plain, _ = theirs.generate("Once upon a time", 20)
    at_the_prompt, _ = theirs.generate("Once upon a time", 20, edits=edits)
    at_every_step, _ = theirs.generate("Once upon a time", 20, edits=edits, steps=range(20))
    assert not torch.equal(at_the_prompt, plain) and not torch.equal(at_the_prompt, at_every_step)
    assert torch.equal(scope["output"], at_the_prompt)


# --- Gradients -------------------------------------------------------------------------------------------------------


@on_every_family
def test_gradients(family: str) -> None:
    snippet = """
with model.trace("The quick brown fox") as tracer:
    hidden = model.transformer.h[5].output[0].save()
    hidden.retain_grad()

    logits = model.output
    target_token = model.tokenizer.encode(" jumps")[0]

    loss = -logits[0, -1, target_token]
    loss.backward()

    # Access gradient
    grad = hidden.grad
"""
    scope, theirs = run(snippet, family), Theirs(family)
    seen = theirs.forward("The quick brown fox", read=[theirs.block(5)], grad=True)
    loss = -seen.logits[0, -1, speaking.tokenizer().encode(" jumps")[0]]
    loss.backward()
    expected = seen[theirs.block(5)].grad
    assert expected.abs().max() > 1e-3
    assert_close(scope["grad"], expected)
    assert_close(scope["hidden"].grad, expected)
    assert_close(scope["hidden"], seen[theirs.block(5)])
    assert_close(scope["loss"], loss)


# --- Sessions --------------------------------------------------------------------------------------------------------


@on_llama_and_mistral
def test_a_session(family: str) -> None:
    snippet = """
with model.session() as session:
    with model.trace("First prompt"):
        h1 = model.model.layers[20].output[0].save()

    with model.trace("Second prompt"):
        h2 = model.model.layers[20].output[0].save()

    # Both run in single NDIF request
"""
    scope, theirs = run(snippet, family, n_layers=21), Theirs(family, n_layers=21)
    for name, prompt in (("h1", "First prompt"), ("h2", "Second prompt")):
        place = "model.layers.20.output"
        assert_close(scope[name], theirs.forward(prompt, read=[place])[place])


@on_every_family
def test_every_prompt_of_a_trace_has_its_own_length(family: str) -> None:
    """The reference pads nobody: what a snippet says of a prompt holds, whatever stands beside it."""
    snippet = """
with model.trace() as tracer:
    with tracer.invoke("Hello"):
        short = model.output.save()

    with tracer.invoke("The quick brown fox jumps over the lazy dog"):
        long = model.output.save()
"""
    scope, theirs = run(snippet, family), Theirs(family)
    assert_close(scope["short"], theirs.forward("Hello").logits)
    assert_close(scope["long"], theirs.forward("The quick brown fox jumps over the lazy dog").logits)
