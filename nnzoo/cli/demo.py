"""`nnzoo demo`: one prompt, one model, four ways to look inside. Read it as a tutorial.

Each function below is an experiment: a prompt goes in, a trace looks at the pass (or changes it), and plain tensors
come out. The body of a `with model.trace(...)` runs nothing; it says what to look at, and the model runs once when the
block ends. How the findings are drawn is in `terminal.py` and `page.py`.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnzoo import LanguageModel
from nnzoo.architectures.html import shown
from nnzoo.cli.findings import Findings, Induction, Lens, Patch, Predictions
from nnzoo.cli.page import page
from nnzoo.cli.terminal import show
from nnzoo.weights.tiny.corpus import Prompt, held_out

# --- names: the paths are Hugging Face's, which differ from family to family -----------------------------------------


def blocks_of(model: LanguageModel) -> Any:
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def attention_of(block: Any) -> Any:
    return block.attn if hasattr(block, "attn") else block.self_attn


def final_norm_of(model: LanguageModel) -> Any:
    return model.transformer.ln_f if hasattr(model, "transformer") else model.model.norm


# --- 1: what does the model predict? ---------------------------------------------------------------------------------


def predict(model: LanguageModel, text: str, n_likely: int = 5) -> Predictions:
    """The tokens of a text and the most likely next ones.

    >>> model = LanguageModel("nnzoo/tiny-gpt2")
    >>> predict(model, "The capital of France is").likely[0][0]
    ' Paris'
    """
    with model.trace(text):
        probabilities = model.output[0, -1].softmax(dim=-1).topk(n_likely)
    likely = zip(strings(model, probabilities.indices), probabilities.values.tolist(), strict=True)
    return Predictions(strings(model, model.tokenizer.encode(text)), list(likely))


def strings(model: LanguageModel, ids: Any) -> list[str]:
    """Each token's own text."""
    return [model.tokenizer.decode([int(i)]) for i in ids]


# --- 2: how does the prediction form, layer by layer? ----------------------------------------------------------------


def logit_lens(model: LanguageModel, text: str) -> Lens:
    """What the model would predict if it stopped after each block (nostalgebraist 2020, "interpreting GPT: the logit
    lens"): the final norm and the unembedding, applied to the residual stream on its way.

    >>> logit_lens(LanguageModel("nnzoo/tiny-gpt2"), "The capital of France is").guesses[-1][-1]
    ' Paris'
    """
    with model.trace(text):
        streams = torch.stack([block.output[0][0] for block in blocks_of(model)], dim=1)  # [pos layer d_model]
        logits = model.lm_head(final_norm_of(model)(streams))
        best = logits.softmax(dim=-1).max(dim=-1)
    guesses = [strings(model, row) for row in best.indices]
    return Lens(strings(model, model.tokenizer.encode(text)), guesses, best.values)


# --- 3: which head copies from the context? --------------------------------------------------------------------------


def find_induction_head(model: LanguageModel, n_sequences: int = 8, period: int = 16) -> Induction:
    """The head that most looks at what followed the same token last time (Olsson et al. 2022, "In-context learning and
    induction heads"): in random sequences that come twice, from each token to the one after its first occurrence.
    """
    tokens = repeated_sequences(model, n_sequences, period)
    with model.trace(tokens):
        patterns = torch.stack([attention_of(block).output[1] for block in blocks_of(model)])
        right = model.output[0, :-1].argmax(dim=-1) == tokens[0, 1:]
    queries = torch.arange(period, 2 * period)  # the second copy
    looks_back = patterns[..., queries, queries - period + 1]  # [layer batch head query]
    scores = looks_back.mean(dim=(1, 3))
    layer, head = divmod(int(scores.argmax()), scores.shape[1])
    n_right = int(right[period:].sum())
    return Induction(
        scores, layer, head, strings(model, tokens[0]), patterns[layer, 0, head], n_right, n_predictable=period - 1
    )


def repeated_sequences(model: LanguageModel, n: int, period: int) -> Tensor:
    """Random words that come twice, as ids [batch pos]."""
    words = [prompt.sentence.split() for prompt in held_out("induction", n)]
    texts = ["".join(f" {word}" for word in row[: len(row) // 2]) for row in words]
    rows = [model.tokenizer.encode(text, add_special_tokens=False)[:period] for text in texts]
    return torch.tensor([row + row for row in rows])


# --- 4: where in the model is the answer decided? --------------------------------------------------------------------


def patch_residual_stream(model: LanguageModel, prompt: Prompt) -> Patch:
    """How far one residual vector of the clean prompt, put into the run on the corrupted one, moves the answer.

    (Activation patching: Meng et al. 2022, "Locating and editing factual associations in GPT")
    """
    answer, wrong_answer = (next_id(model, prompt.text, one) for one in (prompt.answer, prompt.wrong_answer))

    def preference(logits: Tensor) -> Tensor:
        return logits[:, -1, answer] - logits[:, -1, wrong_answer]

    with model.trace(prompt.text):
        clean_streams = [block.input for block in blocks_of(model)]
        clean = preference(model.output)
    with model.trace(prompt.corrupted):
        corrupted = preference(model.output)

    rows = torch.arange(clean_streams[0].shape[1])
    columns = []
    for block, clean_stream in zip(blocks_of(model), clean_streams, strict=True):
        with model.trace([prompt.corrupted] * len(rows)):
            block.input[rows, rows] = clean_stream[0]  # row p of the batch is patched at position p
            patched = preference(model.output)
        columns.append((patched - corrupted) / (clean - corrupted))
    texts = (prompt.text, prompt.corrupted)
    tokens, corrupted_tokens = (strings(model, model.tokenizer.encode(text)) for text in texts)
    return Patch(tokens, corrupted_tokens, torch.stack(columns, dim=1))


def next_id(model: LanguageModel, text: str, continuation: str) -> int:
    """The first token of a continuation."""
    return model.tokenizer.encode(text + continuation)[len(model.tokenizer.encode(text))]


# --- the command -----------------------------------------------------------------------------------------------------


def explore(model: LanguageModel, name: str) -> Findings:
    """All four experiments."""
    prompt = choose_prompt(model)
    return Findings(
        model=name,
        family=type(model._model).__name__,
        n_layers=len(blocks_of(model)),
        prompt=prompt,
        predictions=predict(model, prompt.text),
        lens=logit_lens(model, prompt.text),
        induction=find_induction_head(model),
        patch=patch_residual_stream(model, prompt),
    )


def choose_prompt(model: LanguageModel) -> Prompt:
    """A prompt that the tiny models were not trained on; the first that this model gets right, if there is one."""

    def aligned(prompt: Prompt) -> bool:
        clean, corrupted = (model.tokenizer.encode(text) for text in (prompt.text, prompt.corrupted))
        return len(clean) == len(corrupted) and sum(a != b for a, b in zip(clean, corrupted, strict=True)) == 1

    prompts = [prompt for prompt in held_out("ioi", 40) if prompt.text.startswith("When") and aligned(prompt)]
    if not prompts:
        raise ValueError("the demo needs names that are single tokens, and this model's tokenizer has none of them")

    def is_right(prompt: Prompt) -> bool:
        return shown(predict(model, prompt.text, 1).likely[0][0]) == shown(prompt.answer)

    return next((prompt for prompt in prompts if is_right(prompt)), prompts[0])


def run(options: Namespace) -> int:
    """Explore a model; print what was found, and write it as a page."""
    findings = explore(LanguageModel(options.model), options.model)
    file = Path(options.html)
    file.write_text(page(findings), encoding="utf-8")
    show(findings, file, color=not options.no_color)
    return 0
