"""How surprised the model is by each token.

Source: Shannon 1951, Prediction and Entropy of Printed English (https://doi.org/10.1002/j.1538-7305.1951.tb01366.x).
"""

import torch

from nnzoo.analysis.colored_text import ColoredText
from nnzoo.analysis.results import Axis
from nnzoo.analysis.subject import Model, Prompts, Subject, exclusive


@exclusive
@torch.no_grad()
def token_losses(model: Model, prompts: Prompts) -> ColoredText:
    """The cross-entropy of each token after the first, in nats: [prompt pos], or [pos] for one prompt.

    The loss at a position is that of the token which stands there, as those before it predict it. Where there is
    padding, or only padding before, it is 0. A notebook shows the text, coloured.

    >>> from nnzoo import LanguageModel
    >>> model = LanguageModel("nnzoo/tiny-gpt2")
    >>> losses = token_losses(model, "The capital of France is Paris")
    >>> losses.axes[0].labels[-1], losses.values[-1].item() < 1
    (' Paris', True)
    """
    subject = Subject(model)
    tokens = subject.read(prompts)
    values = subject.native(tokens.ids, attention_mask=tokens.mask, return_type="loss", loss_per_token=True)
    pos = Axis("pos", subject.labels(tokens)[1:])
    real = zip(tokens.ids.tolist(), tokens.real.tolist(), strict=True)
    texts = tuple(tuple(subject.text(i) if there else "" for i, there in zip(*row, strict=True)) for row in real)
    if len(texts) == 1:
        return ColoredText("loss of each token", "nats", values[0], (pos,), texts)
    prompt = Axis("prompt", tuple(map(str, range(len(values)))))
    return ColoredText("loss of each token", "nats", values, (prompt, pos), texts)
