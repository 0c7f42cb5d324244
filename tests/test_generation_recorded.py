"""Steps that are recorded and replayed give what the usual ones give; here on the CPU, with a tape for the graph."""

import pytest
import torch
from torch import Tensor

from families import N_CTX, PLAIN, error, ids, ours, prompt
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.generation import generate
from nnzoo.generation.decoder import Decoder
from nnzoo.generation.loop import options_for, run
from tape import Tape, taped

NEW = 30  # beyond Mistral's window of 7
MODELS = [
    *PLAIN,
    ("gpt2", "inverse_layer_scale"),
    ("llama", "n_kv_heads=1"),
    ("llama", "n_kv_heads=4"),
    ("llama", "attention_bias"),
    ("llama", "rope=linear"),
    ("llama", "rope=dynamic"),
    ("llama", "rope=llama3"),
    ("llama", "rope=yarn"),
    ("mistral", "window=1"),
    ("mistral", "window=3"),
    ("mistral", "window=null"),
]
TOKENS = prompt(3, 10)
PADDED = torch.ones(3, 10, dtype=torch.bool)
PADDED[0, :5], PADDED[2, :2] = False, False
EOS = (17, 23, 46, 60, 81)
OPTIONS = {
    "greedy": {},
    "ends": {"eos_token_id": EOS},
    "sampled": {"do_sample": True, "seed": 3, "temperature": 1.4},
    "several": {"do_sample": True, "seed": 3, "num_return_sequences": 2, "eos_token_id": EOS},
    "processed": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "eos_token_id": EOS, "min_new_tokens": 20},
}


class Keeping(Decoder):
    """A decoder that keeps the logits of each step."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.logits: list[Tensor] = []

    def choose(self, logits: Tensor) -> Tensor:
        self.logits.append(logits)
        return super().choose(logits)


def decoded(model: HookedModel, tokens: Tensor = TOKENS, mask: Tensor | None = None, **options) -> Keeping:
    """A decoder that is done; the model gave it its logits without gradients."""
    decoder = Keeping(options_for(model, tokens, mask, {"max_new_tokens": NEW, **options}, {}), tokens, mask)
    with torch.no_grad():
        run(model, decoder)
    return decoder


def agree(a: Keeping, b: Keeping, tolerance: float = 1e-6) -> None:
    assert torch.equal(a.ids, b.ids)
    assert error(torch.stack(a.logits), torch.stack(b.logits)) < tolerance


# --- nobody listens -----------------------------------------------------------------------------------------------


@ids(MODELS)
@pytest.mark.parametrize("mask", [None, PADDED], ids=["whole", "padded"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_recorded_steps_are_the_usual_ones(family, setting, mask, options):
    model = ours(family, setting)
    usual = decoded(model, mask=mask, **options)
    with taped() as tapes:
        agree(decoded(model, mask=mask, **options), usual)
        assert tapes.made == 1
        assert tapes.replays == 1 + usual.steps - 2  # to compare; the prompt and the first step run as usual
