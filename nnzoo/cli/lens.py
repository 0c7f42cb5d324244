"""`nnzoo lens`: what the model would say if it stopped after each layer."""

from argparse import Namespace

from nnzoo import LanguageModel
from nnzoo.analysis import logit_lens
from nnzoo.analysis.subject import Subject
from nnzoo.cli.document import Answer
from nnzoo.cli.generate import utf8


def run(options: Namespace) -> int:
    """Show the logit lens on a prompt.

    >>> run(Namespace(model="nnzoo/tiny-gpt2", prompt="The capital of France is", target=None, at=None, html=None))
    Logit lens: nnzoo/tiny-gpt2
    ...
    The prediction at the end: ' Paris' ...
    0
    """
    model = LanguageModel(options.model)
    subject, prompt = Subject(model), utf8(options.prompt)
    target = None if options.target is None else token_of(subject, options.target)
    lens = logit_lens(model, prompt, target, at=options.at or "resid_post")
    about = "The last norm and the unembedding, applied on the way: the most likely next token, and its probability."
    if target is not None:
        about = (
            f"The last norm and the unembedding, applied on the way: the probability of {target!r} as "
            "the next token, and its rank (#0: the most likely)."
        )
    answer = Answer(f"Logit lens: {options.model}", about, options.html)
    answer.add(lens)
    likely = lens.logits[-1, -1].softmax(dim=-1).topk(3)
    tokens = [subject.text(token) for token in likely.indices.tolist()]
    words = [f"{token!r} {share:.0%}" for token, share in zip(tokens, likely.values.tolist(), strict=True)]
    answer.say(f"The prediction at the end: {', '.join(words)}.")
    return answer.end()


def token_of(subject: Subject, text: str) -> str:
    """The token that a word of the command line is: with a space in front, where there is one, else as it stands.

    Raises ValueError for a text of several tokens.

    >>> subject = Subject(LanguageModel("nnzoo/tiny-gpt2"))
    >>> token_of(subject, "Mary"), token_of(subject, " Mary"), token_of(subject, ",")
    (' Mary', ' Mary', ',')
    """
    for candidate in (f" {text.removeprefix(' ')}", text):
        if len(subject.tokenizer.encode(candidate, add_special_tokens=False)) == 1:
            return candidate
    raise ValueError(f"a single token is needed, and {text!r} is {_pieces(subject, text)} in this model's vocabulary")


def _pieces(subject: Subject, text: str) -> str:
    ids = subject.tokenizer.encode(text, add_special_tokens=False)
    return f"{len(ids)} tokens, {[subject.text(i) for i in ids]}," if ids else "none"
