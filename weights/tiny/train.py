"""Train a tiny checkpoint: `python -m nnzoo.weights.tiny.train gpt2`, or llama, or mistral.

The models are transformers' own classes, so that what is learned owes nothing to nnzoo's.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from nnzoo.weights.tiny.card import model_card
from nnzoo.weights.tiny.corpus import WORDS, Prompt, training_prompts
from nnzoo.weights.tiny.evaluate import induction_scores, measure
from nnzoo.weights.tiny.models import build_model
from nnzoo.weights.tiny.tokenizer import CONTEXT_LENGTH, build_tokenizer

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """What decides a training run."""

    family: str
    steps: int
    longest_period: int  # of the repeated sequences
    seed: int = 0
    tokens_per_step: int = 2048
    adam_lr: float = 3e-3
    muon_lr: float = 5e-3
    warmup: int = 100
    cooldown: int = 500
    weight_decay: float = 0.05
    repeated_share: float = 0.4  # of the rows
    answer_weight: float = 5.0  # an answer is one token of a dozen


RECIPES = {
    "gpt2": Recipe("gpt2", steps=2500, longest_period=50),
    "llama": Recipe("llama", steps=3300, longest_period=50),
    "mistral": Recipe("mistral", steps=2500, longest_period=30),  # a period that its window holds
}


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids and the weights of their losses; a row is a repeated random sequence, or sentences one after another.

    Most rows are short, which is cheap; some are as long as the context, so that every position is trained. Half of
    them begin with the end of a text, so that a prompt may or may not.
    """
    rng = random.Random(f"batches {recipe.seed}")
    stream = _encoded(training_prompts(recipe.seed), tokenizer, recipe.answer_weight)
    words = [tokenizer.encode(f" {word}")[0] for word in WORDS]
    while True:
        length = rng.choice((64, 64, 64, 64, CONTEXT_LENGTH))
        rows = []
        for _ in range(recipe.tokens_per_step // length):
            row = [(tokenizer.eos_token_id, 0.0)] * rng.randint(0, 1)
            if rng.random() < recipe.repeated_share:
                pool = words if rng.random() < 0.75 else range(1, len(tokenizer))
                row += _repeated(rng, pool, length, recipe.longest_period)
            while len(row) < length:
                row += [*next(stream), (tokenizer.eos_token_id, 1.0)]
            rows.append(row[:length])
        yield (
            torch.tensor([[token for token, _ in row] for row in rows]),
            torch.tensor([[w for _, w in row] for row in rows]),
        )


def _encoded(
    prompts: Iterator[Prompt], tokenizer: PreTrainedTokenizerFast, answer_weight: float
) -> Iterator[list[tuple[int, float]]]:
    """Sentences as pairs of token and weight: more for an answer than for what leads to it."""
    while True:
        chunk = list(islice(prompts, 500))
        parts = (
            tokenizer(texts)["input_ids"] for texts in zip(*((p.text, p.answer, p.ending) for p in chunk), strict=True)
        )
        for text, answer, ending in zip(*parts, strict=True):
            yield [*((t, 1.0) for t in text), *((t, answer_weight) for t in answer), *((t, 1.0) for t in ending)]


def _repeated(rng: random.Random, pool: Sequence[int], length: int, longest: int) -> list[tuple[int, float]]:
    """A random beginning, then one random sequence over and over; no loss where nothing can be known."""
    # Log-uniform: short periods are how induction begins, long ones how it stops being a matter of distance.
    period = round(math.exp(rng.uniform(math.log(3), math.log(min(longest, length // 2 - 6)))))
    unknown = rng.sample(pool, rng.randint(0, 8))
    sequence = rng.sample(pool, period)
    known_from = len(unknown) + period + 1
    row = unknown + sequence * math.ceil(length / period)
    return [(token, float(i >= known_from)) for i, token in enumerate(row)]


def weighted_loss(logits: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
    """The mean cross-entropy of the next token, by weight."""
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    return losses @ weights / weights.sum()


def train(recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Train in place: Muon and AdamW, a warm-up, a plateau and a cool-down."""
    optimizers = _optimizers(recipe, model)
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda step: _schedule(step, recipe)) for each in optimizers]
    progress = tqdm(islice(batches(recipe, tokenizer), recipe.steps), total=recipe.steps, mininterval=5)
    for step, (tokens, weights) in enumerate(progress):
        loss = weighted_loss(model(tokens, use_cache=False).logits, tokens, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        for schedule in schedules:
            schedule.step()
        model.zero_grad()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.2f}")


def _optimizers(recipe: Recipe, model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the MLPs, AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if ".mlp." in name and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def _schedule(step: int, recipe: Recipe) -> float:
    return min(1.0, (step + 1) / recipe.warmup, (recipe.steps - step) / recipe.cooldown)


def write(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, card: str) -> None:
    """Write what transformers loads, and the card."""
    end = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(bos_token_id=end, eos_token_id=end, pad_token_id=end)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # transformers 5 names a class that version 4 does not have; both know this one.
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.pop("backend", None)
    file.write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "README.md").write_text(card)


@torch.no_grad()
def describe(recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seconds: float) -> str:
    """The card of a trained model, with its held-out figures."""
    model.eval().set_attn_implementation("eager")  # the one that gives patterns
    figures = measure(lambda tokens: model(tokens).logits, tokenizer.encode)
    scores = induction_scores(lambda tokens: model(tokens, output_attentions=True).attentions, tokenizer.encode)
    training = asdict(recipe) | {
        "wall time": f"{seconds / 60:.0f} minutes, one thread, a shared machine",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }
    return model_card(recipe.family, model, len(tokenizer), training, figures, scores)


def main(arguments: list[str] | None = None) -> None:
    """Train one family and write its folder."""
    parser = argparse.ArgumentParser(prog="python -m nnzoo.weights.tiny.train", description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=RECIPES)
    parser.add_argument("--out", type=Path, help="the folder to write; the embedded one unless told")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    recipe, tokenizer = RECIPES[options.family], build_tokenizer()
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.family, tokenizer)
    start = time.perf_counter()
    train(recipe, model, tokenizer)
    card = describe(recipe, model, tokenizer, seconds=time.perf_counter() - start)
    write(options.out or HERE / recipe.family, model, tokenizer, card)


if __name__ == "__main__":
    main()
