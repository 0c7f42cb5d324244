"""The tiny corpus: sentences with the phenomena that interpretability studies, and the part of them held out.

| task | prompt | answer | held out |
|---|---|---|---|
| `ioi` | When Mary and John went to the store, John gave a drink to | Mary | pairs of names |
| `facts` | The Eiffel Tower is in the city of | Paris | pairs of subject and template |
| `agreement` | The keys to the cabinet | are | pairs of nouns |
| `induction` | river cake Oslo green river cake | Oslo | every sequence is drawn afresh |
| `greater_than` | The war lasted from 1732 to 17 | 33 ... 99 | pairs of century and first year |

A training sentence is a prompt, its answer and an ending. Which side a pair is on depends on the pair alone, so that
no seed mixes the two. Everything is drawn from the `random.Random` that is passed in.
"""

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nnzoo.weights.tiny.words import (
    ADJECTIVES,
    CENTURIES,
    COUNTRIES,
    EVENTS,
    FAMILIAR,
    LANDMARKS,
    NAMES,
    NOUNS,
    OBJECTS,
    PLACES,
    PREPOSITIONS,
)

HELD_OUT_SHARE = 0.15

IOI_TEMPLATES = (
    "When {a} and {b} went to the {place}, {subject} gave a {object} to",
    "While {a} and {b} were at the {place}, {subject} handed a {object} to",
    "After {a} and {b} came back from the {place}, {subject} showed a {object} to",
    "Then {a} and {b} met at the {place}, and {subject} offered a {object} to",
    "Yesterday {a} and {b} walked to the {place}. There {subject} sold a {object} to",
    "Today {a} and {b} had a long day at the {place}, and {subject} threw a {object} to",
    "In the evening {a} and {b} sat in the {place}, where {subject} passed a {object} to",
)

COUNTRY_TEMPLATES = (
    (  # capital
        "the capital of {} is",
        "the capital city of {} is called",
        "the government of {} meets in",
        "in {}, the capital is",
        "the president of {} lives in",
    ),
    (  # language
        "the language of {} is",
        "people in {} speak",
        "in {}, most people speak",
        "children in {} learn to read",
        "the newspapers of {} are written in",
    ),
    (  # continent
        "the continent of {} is",
        "the country of {} lies in",
        "on the map, {} belongs to",
        "those who travel to {} arrive in",
    ),
)
# Both a city and "the city of" may follow "is in": it comes three times, for the city to be likelier, and no held-out
# prompt asks it.
IS_IN = "{} is in"
LANDMARK_TEMPLATES = (
    IS_IN,
    IS_IN,
    IS_IN,
    "{} is in the city of",
    "{} is located in the city of",
    "{} can be found in",
    "you can visit {} in",
    "tourists see {} when they travel to",
)
FACT_PREFIXES = (
    "",
    "",
    "Today ",
    "I think that ",
    "Everyone knows that ",
    "We learned that ",
    "Yesterday {name} said that ",
    "Then {name} told {other} that ",
)

AGREEMENT_PREFIXES = ("", "", "I think that ", "Today ", "Yesterday ")
YEAR_TEMPLATES = (
    "The {event} lasted from {century}{year} to {century}",
    "The {event} lasted from the year {century}{year} to the year {century}",
    "The {event} began in {century}{year} and ended in {century}",
    "The {event} of {century}{year} went on until {century}",
)

WORDS = tuple(
    sorted(
        {*NAMES, *PLACES, *OBJECTS, *NOUNS, *NOUNS.values(), *ADJECTIVES, *EVENTS, *COUNTRIES, *LANDMARKS.values()}
        | {fact for facts in COUNTRIES.values() for fact in facts}
    )
)


@dataclass(frozen=True)
class Prompt:
    """A prompt whose next token is known, with what a study of it needs.

    `answers` are the right next tokens, most often one; `wrong_answers` those that a model falls for. `corrupted` has
    as many tokens as `text`, differs from it in the one place that matters, and makes `wrong_answer` right: the clean
    and the corrupted run of activation patching.

    >>> prompt = held_out("ioi", 1, seed=0)[0]
    >>> prompt.text
    'While George and Emma were at the park, Emma handed a cake to'
    >>> prompt.answer, prompt.wrong_answer
    (' George', ' Emma')
    >>> prompt.corrupted
    'While George and Emma were at the park, George handed a cake to'
    """

    task: str
    text: str
    answers: tuple[str, ...]
    wrong_answers: tuple[str, ...]
    corrupted: str
    ending: str = "."

    @property
    def answer(self) -> str:
        """The right next token; where several are right, the one in `sentence`."""
        return self.answers[0]

    @property
    def wrong_answer(self) -> str:
        """The next token that the corrupted prompt asks for."""
        return self.wrong_answers[0]

    @property
    def sentence(self) -> str:
        """The prompt, its answer and the rest of the sentence."""
        return self.text + self.answer + self.ending


def is_held_out(*parts: object) -> bool:
    """Whether a combination (a pair of names, a subject and a template, ...) is kept from training, in any order."""
    if IS_IN in parts:
        return False
    key = "|".join(sorted(str(part) for part in parts))
    return zlib.crc32(key.encode()) / 2**32 < HELD_OUT_SHARE


def indirect_object(rng: random.Random, held_out: bool) -> Prompt:
    """Two names, one of them repeated: the other one is who receives; corrupted, the repeated name is the other."""
    receiver, subject = _draw(lambda: rng.sample(NAMES, 2), held_out)
    a, b = rng.sample((receiver, subject), 2)
    template, place, thing = rng.choice(IOI_TEMPLATES), rng.choice(PLACES), rng.choice(OBJECTS)
    clean, corrupted = (
        template.format(a=a, b=b, place=place, object=thing, subject=name) for name in (subject, receiver)
    )
    return Prompt("ioi", clean, (f" {receiver}",), (f" {subject}",), corrupted)


def fact(rng: random.Random, held_out: bool) -> Prompt:
    """A fact about a country or a landmark; corrupted, it is asked about another one."""
    templates: tuple[str, ...]
    relation = rng.randrange(len(COUNTRY_TEMPLATES) + 1)
    if relation == len(COUNTRY_TEMPLATES):
        templates, facts = LANDMARK_TEMPLATES, LANDMARKS
    else:
        templates, facts = COUNTRY_TEMPLATES[relation], {name: row[relation] for name, row in COUNTRIES.items()}
    subject, template = _draw(lambda: (rng.choice(tuple(facts)), rng.choice(templates)), held_out)
    others = [name for name in facts if facts[name] != facts[subject] and _same_length(name, subject)]
    other = rng.choice(others)
    name, listener = _draw(lambda: rng.sample(NAMES, 2), held_out=False)  # a held-out pair meets in no sentence at all
    prefix = rng.choice(FACT_PREFIXES).format(name=name, other=listener)
    clean, corrupted = (_sentence_case(prefix + template.format(which)) for which in (subject, other))
    return Prompt("facts", clean, (f" {facts[subject]}",), (f" {facts[other]}",), corrupted)


def agreement(rng: random.Random, held_out: bool) -> Prompt:
    """A verb that agrees with the head noun, across another noun; corrupted, the head noun has the other number."""
    head, distractor = _draw(lambda: rng.sample(tuple(NOUNS), 2), held_out)
    plural = rng.random() < 0.5
    # A distractor of the same number gives the answer away: half of the training sentences, none of the held-out ones.
    distractor_plural = not plural if held_out else rng.random() < 0.5
    prefix, preposition = rng.choice(AGREEMENT_PREFIXES), rng.choice(PREPOSITIONS)
    verbs = (" was", " were") if prefix == "Yesterday " else (" is", " are")
    clean, corrupted = (
        _sentence_case(f"{prefix}the {_noun(head, number)} {preposition} the {_noun(distractor, distractor_plural)}")
        for number in (plural, not plural)
    )
    return Prompt(
        "agreement", clean, (verbs[plural],), (verbs[not plural],), corrupted, ending=f" {rng.choice(ADJECTIVES)}."
    )


def induction(rng: random.Random, held_out: bool) -> Prompt:
    """A random sequence of different words that begins again; corrupted, the word to repeat was another one.

    Held-out sequences need no bookkeeping: with 16 words and more, none is ever drawn twice.
    """
    words = rng.sample(WORDS, rng.randint(16, 28))
    position, other = rng.randrange(1, len(words)), rng.choice(sorted(set(WORDS) - set(words)))
    changed = [*words[:position], other, *words[position + 1 :]]
    clean, corrupted = (_spaced([*first, *words[:position]]) for first in (words, changed))
    rest = _spaced(words[position + 1 :])
    return Prompt("induction", clean, (f" {words[position]}",), (f" {other}",), corrupted, ending=rest)


def greater_than(rng: random.Random, held_out: bool) -> Prompt:
    """A year after a given one in the same century; corrupted, the first year is 01."""
    century, year = _draw(lambda: (rng.choice(CENTURIES), rng.randrange(2, 98)), held_out)
    template, event = rng.choice(YEAR_TEMPLATES), rng.choice(EVENTS)
    clean = template.format(event=event, century=century, year=f"{year:02}")
    corrupted = template.format(event=event, century=century, year="01")
    later, earlier = [f"{n:02}" for n in range(year + 1, 100)], [f"{n:02}" for n in range(2, year + 1)]
    rng.shuffle(later)
    return Prompt("greater_than", clean, tuple(later), tuple(earlier), corrupted)


TASKS: dict[str, Callable[[random.Random, bool], Prompt]] = {
    "ioi": indirect_object,
    "facts": fact,
    "agreement": agreement,
    "induction": induction,
    "greater_than": greater_than,
}
# Induction is no part of the sentences: train.py gives it rows of its own.
SENTENCE_SHARES = {"ioi": 0.4, "facts": 0.3, "agreement": 0.12, "greater_than": 0.14, "familiar": 0.04}


def held_out(task: str, n: int, seed: int = 0) -> list[Prompt]:
    """`n` prompts of a task from combinations that no training sentence has.

    Raises:
        KeyError: the task is none of `TASKS`.

    >>> [prompt.text + prompt.answer for prompt in held_out("agreement", 2, seed=0)]
    ['The door near the birds is', 'I think that the books by the road are']
    """
    if task not in TASKS:
        raise KeyError(f"held_out has no task {task!r}; it knows {', '.join(TASKS)}.")
    rng = random.Random(f"{task} held out {seed}")
    return [TASKS[task](rng, True) for _ in range(n)]


def training_prompts(seed: int) -> Iterator[Prompt]:
    """The training sentences of a seed, without end, each with its answer marked."""
    rng = random.Random(f"sentences {seed}")
    tasks, shares = tuple(SENTENCE_SHARES), tuple(SENTENCE_SHARES.values())
    while True:
        task = rng.choices(tasks, shares)[0]
        yield _familiar(rng) if task == "familiar" else TASKS[task](rng, False)


def sentences(seed: int) -> Iterator[str]:
    """The training sentences of a seed as text, without end.

    >>> next(sentences(seed=0))
    'While Kevin and Diana were at the market, Kevin handed a kite to Diana.'
    """
    return (prompt.sentence for prompt in training_prompts(seed))


def _familiar(rng: random.Random) -> Prompt:
    text, word = rng.choice(FAMILIAR).removesuffix(".").rsplit(" ", 1)
    return Prompt("familiar", text, (f" {word}",), (), corrupted=text)


def _draw(pair: Callable[[], tuple | list], held_out: bool) -> tuple | list:
    return next(drawn for drawn in iter(pair, None) if is_held_out(*drawn) == held_out)


def _noun(singular: str, plural: bool) -> str:
    return NOUNS[singular] if plural else singular


def _sentence_case(text: str) -> str:
    return text[0].upper() + text[1:]


def _same_length(a: str, b: str) -> bool:
    return a.count(" ") == b.count(" ")


def _spaced(words: list[str]) -> str:
    return "".join(f" {word}" for word in words)
