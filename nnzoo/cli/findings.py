"""What the experiments of `nnzoo demo` find, and what is said of it in the terminal and on the page alike."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from nnzoo.architectures.html import shown
from nnzoo.weights.tiny.corpus import Prompt

FULLY = 0.9  # of the way from one answer to the other
CLEARLY = 0.4  # of a head's attention


@dataclass(frozen=True)
class Predictions:
    """The tokens of a prompt and the most likely next ones, with their probabilities."""

    tokens: list[str]
    likely: list[tuple[str, float]]


@dataclass(frozen=True)
class Lens:
    """What the model would predict if it stopped after each block."""

    tokens: list[str]
    guesses: list[list[str]]  # [pos][layer]
    probabilities: Float[Tensor, "pos layer"]

    def first_layer(self, answer: str) -> int | None:
        """The first block after which the answer is the prediction for good."""
        wrong = [layer for layer, guess in enumerate(self.guesses[-1]) if shown(guess) != shown(answer)]
        first = max(wrong, default=-1) + 1
        return first if first < len(self.guesses[-1]) else None


@dataclass(frozen=True)
class Induction:
    """How much each head copies in a sequence that comes twice, and where the one that does so most looks."""

    scores: Float[Tensor, "layer head"]
    layer: int
    head: int
    tokens: list[str]
    pattern: Float[Tensor, "query key"]
    n_right: int  # of the second copy's tokens
    n_predictable: int

    @property
    def period(self) -> int:
        return len(self.tokens) // 2

    @property
    def summary(self) -> str:
        head, score = f"head {self.head} of block {self.layer}", self.scores[self.layer, self.head].item()
        copied = f"The model predicts {self.n_right} of the {self.n_predictable} words that the first copy gives away."
        if score > CLEARLY:
            return f"{head.capitalize()} does: {score:.0%} of its attention goes there. {copied}"
        return f"No head clearly does; {head} comes nearest, with {score:.0%} of its attention there. {copied}"


@dataclass(frozen=True)
class Patch:
    """How far a clean residual vector, put into the corrupted run at one place, moves the answer."""

    tokens: list[str]
    corrupted_tokens: list[str]
    moved: Float[Tensor, "pos layer"]  # 0: the corrupted answer stays; 1: the clean one is back

    @property
    def changed(self) -> int:
        """The position at which the two prompts differ."""
        pairs = zip(self.tokens, self.corrupted_tokens, strict=True)
        return next(pos for pos, (clean, corrupted) in enumerate(pairs) if clean != corrupted)

    @property
    def summary(self) -> str:
        """The places that move the answer fully, in words."""
        places = []
        for pos, row in enumerate(self.moved.tolist()):
            layers = [layer for layer, moved in enumerate(row) if moved > FULLY]
            if layers:
                token = self.tokens[pos].strip()
                places.append(f"at {token!r} (token {pos}) before {listed_blocks(layers)}")
        if not places:
            return "No single place moves the answer fully."
        return f"One vector moves the answer fully {'; '.join(places)}."


def listed_blocks(layers: list[int]) -> str:
    """Blocks in words.

    >>> listed_blocks([0, 1, 2]), listed_blocks([4]), listed_blocks([0, 2])
    ('blocks 0 to 2', 'block 4', 'blocks 0, 2')
    """
    if len(layers) == 1:
        return f"block {layers[0]}"
    if layers == list(range(layers[0], layers[-1] + 1)):
        return f"blocks {layers[0]} to {layers[-1]}"
    return f"blocks {', '.join(map(str, layers))}"


@dataclass(frozen=True)
class Findings:
    """All that the demo shows."""

    model: str
    family: str
    n_layers: int
    prompt: Prompt
    predictions: Predictions
    lens: Lens
    induction: Induction
    patch: Patch

    def sections(self) -> "tuple[Section, Section, Section, Section]":
        """What is said of predictions, lens, induction and patch."""
        answer, wrong = self.prompt.answer.strip(), self.prompt.wrong_answer.strip()
        corrupted = self.patch.corrupted_tokens[self.patch.changed].strip()
        return (
            Section(
                "What comes next?",
                self._prediction_summary(),
                "Two names, one of them twice: the other one is who receives. No training sentence of the tiny models "
                "has this pair of names.",
            ),
            Section(
                "What if the model stopped after each block? (logit lens)",
                self._lens_summary(),
                "The final norm and the unembedding, applied to the residual stream after each block: the most likely "
                "next token at each position, shaded by its probability.",
            ),
            Section(
                "Which head looks at what followed last time? (induction)",
                self.induction.summary,
                f"{self.induction.period} random words come twice. From each word of the second copy, how much "
                "attention goes to the one that followed it in the first?",
            ),
            Section(
                f"Where is it decided between {answer} and {wrong}? (activation patching)",
                self.patch.summary,
                f"With {corrupted!r} as token {self.patch.changed}, {wrong!r} is right. Into this run goes one "
                "residual vector of the original one, before one block. 0: nothing changes; 1: the answer is back.",
            ),
        )

    def _prediction_summary(self) -> str:
        chances = {shown(token): probability for token, probability in self.predictions.likely}
        answer, wrong = shown(self.prompt.answer), shown(self.prompt.wrong_answer)
        return (
            f"{answer!r} is right, and has {chances.get(answer, 0):.1%}; "
            f"{wrong!r}, who gives, has {chances.get(wrong, 0):.1%}."
        )

    def _lens_summary(self) -> str:
        first, answer = self.lens.first_layer(self.prompt.answer), self.prompt.answer.strip()
        if first is None:
            return f"The last row does not arrive at {answer!r}."
        return f"The last row arrives at {answer!r} with block {first} of 0 to {self.n_layers - 1}."


@dataclass(frozen=True)
class Section:
    """What is said of one experiment."""

    question: str
    summary: str
    explanation: str
