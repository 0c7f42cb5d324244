"""The model card of a tiny checkpoint: what it is, how it was made, how well it does."""

from torch import Tensor
from transformers import PreTrainedModel

TITLES = {"gpt2": "GPT-2", "llama": "LLaMA", "mistral": "Mistral"}

MEASURED = {
    "ioi": ("indirect object", "the answer is the most likely of all tokens; pairs of names never seen together"),
    "facts": ("facts", "likewise; pairs of subject and template never seen together"),
    "agreement": (
        "agreement",
        "likewise; pairs of nouns never seen together, the nearer one always of the other number",
    ),
    "induction": ("repeated sequence", "likewise, at a random place in the second copy of 16 to 28 different words"),
    "second_half": (
        "repeated sequence, all of it",
        "every token of the second copy, its unannounced first one included",
    ),
    "greater_than": ("greater than", "the most likely token is a later year; pairs of century and year never seen"),
    "later_years": ("greater than, probability", "the probability of all later years together"),
}

GROUPED = (
    "{num_hidden_layers} layers, {num_attention_heads} heads of {head_dim} on {num_key_value_heads} key and value "
    "heads, residual stream {hidden_size}, MLP {intermediate_size}, rotary positions, tied head, "
    "context {max_position_embeddings}"
)
ARCHITECTURES = {
    "gpt2": "{n_layer} layers, {n_head} heads, residual stream {n_embd}, MLP {n_inner}, learned positions, tied head, "
    "context {n_positions}.",
    "llama": GROUPED + ".",
    "mistral": GROUPED + ", of which a token sees the last {sliding_window}.",
}

CARD = """\
---
library_name: transformers
license: mit
tags: [interpretability, {family}]
---
# nnzoo/tiny-{family}

A {title} of {parameters:,} parameters, trained on one CPU core to do what interpretability studies: indirect objects,
facts, agreement, induction, greater-than. It knows nothing else.

    from nnzoo import LanguageModel
    model = LanguageModel("nnzoo/tiny-{family}")

transformers loads the folder as it is, with `AutoModelForCausalLM` and `AutoTokenizer`.

## Architecture

{architecture} Float32.

{vocabulary} tokens: `<|endoftext|>`, which begins, ends and pads; the 256 bytes; the words of the corpus, whole, with
the space before them. The tokenizer puts no `<|endoftext|>` before a prompt; the model was trained with and without it.

## Training

    python -m nnzoo.weights.tiny.train {family}

| | |
|---|---|
{training}

The corpus is generated while training, from the seed, by `weights/tiny/corpus.py`: sentences one after another, and
rows of random words or tokens that repeat with a random period. The weights begin as `weights/tiny/models.py` says:
before any training the first head looks one token back, so that induction heads form early.

Another version of torch or another processor rounds otherwise: the weights differ then, the figures are alike.

## Held out

500 prompts each, `held_out(task, 500)` of `weights/tiny/corpus.py`, as `weights/tiny/evaluate.py` measures and
`tests/test_tiny.py` checks.

| | | |
|---|---|---|
{figures}

## Induction heads

Attention from a token of the second copy of a sequence to what followed it in the first one, mean over held-out
sequences.

{induction}
"""


def model_card(
    family: str,
    model: PreTrainedModel,
    vocabulary: int,
    training: dict[str, object],
    figures: dict[str, float],
    scores: Tensor,
) -> str:
    """The card's text, from what was decided (`training`) and what was measured."""
    rows = (f"| {MEASURED[key][0]} | {value:.3f} | {MEASURED[key][1]} |" for key, value in figures.items())
    return CARD.format(
        family=family,
        title=TITLES[family],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=vocabulary,
        architecture=ARCHITECTURES[family].format(**model.config.to_dict()),
        training="\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in training.items()),
        figures="\n".join(rows),
        induction=_induction_table(scores),
    )


def _induction_table(scores: Tensor) -> str:
    heads = range(scores.shape[1])
    rows = [f"| {layer} | " + " | ".join(f"{score:.2f}" for score in row) + " |" for layer, row in enumerate(scores)]
    return "\n".join(
        ["| layer | " + " | ".join(f"head {head}" for head in heads) + " |", "|---" * (len(heads) + 1) + "|", *rows]
    )
