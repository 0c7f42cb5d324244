"""How surprised the model is by each token."""

import torch

from nnzoo.analysis.results import Axis, Result
from nnzoo.analysis.subject import Model, Prompts, Subject


@torch.no_grad()
def token_losses(model: Model, prompts: Prompts) -> Result:
    """The cross-entropy of each token after the first, in nats: [prompt pos], or [pos] for one prompt.

    The loss at a position is that of the token which stands there, as those before it predict it. Where there is
    padding, or only padding before, it is 0.

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
    if len(tokens.ids) == 1:
        return Result("loss of each token", "nats", values[0], (pos,))
    prompt = Axis("prompt", tuple(map(str, range(len(values)))))
    return Result("loss of each token", "nats", values, (prompt, pos))
