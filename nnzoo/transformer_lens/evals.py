"""Rough measures of a model by TransformerLens's names: those that need no data set from the network."""

import random
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nnzoo.transformer_lens.refusals import Refused
from nnzoo.transformer_lens.utils import lm_cross_entropy_loss

TEXT = (
    "Many important transition points in the history of science have been moments when science 'zoomed in.' At these "
    "points, we develop a visualization or tool that allows us to see the world in a new level of detail, and a new "
    "field of science develops to study the world through this lens."
)


def sanity_check(model: Any) -> Tensor:
    """The loss on one paragraph of English: above 7 something is wrong with a model that learned English."""
    return model(TEXT, return_type="loss")


@torch.no_grad()
def evaluate_on_dataset(
    model: Any, data_loader: Iterable[Mapping[str, Tensor]], truncate: int = 100, device: Any = "cuda"
) -> float:
    """The mean loss over the batches of a loader, {"tokens": [batch pos]}, or over the first of them."""
    total, n = 0.0, 0
    for batch in data_loader:
        total += model(batch["tokens"].to(device), return_type="loss").mean().item()
        n += 1
        if n > truncate:
            break
    return total / n


@torch.no_grad()
def induction_loss(
    model: Any,
    tokenizer: Any = None,
    batch_size: int = 4,
    subseq_len: int = 384,
    prepend_bos: bool | None = None,
    device: Any = "cuda",
) -> Tensor:
    """The mean loss on the second copy of random tokens that come twice: low where there are induction heads.

    Ids are drawn from 100 to 20000, or to the end of a smaller vocabulary.
    """
    first = torch.randint(100, min(20000, model.cfg.d_vocab), (batch_size, subseq_len)).to(device)
    tokens = first.repeat(1, 2)
    if model.cfg.default_prepend_bos if prepend_bos is None else prepend_bos:
        tokens[:, 0] = (model.tokenizer if tokenizer is None else tokenizer).bos_token_id
    losses = lm_cross_entropy_loss(model(tokens), tokens, per_token=True)
    return losses[:, subseq_len + 1 :].mean()


class IOIDataset(Dataset):
    """Sentences whose last word is the name that came once: {"prompt", "IO", "S"}, as ids.

    Wang et al. 2022, Interpretability in the Wild (https://arxiv.org/abs/2211.00593). Templates have "[A]", the
    indirect object, "[B]", the subject, and the names of `nouns` in brackets; with `symmetric` each comes with its
    names swapped as well.
    """

    def __init__(
        self,
        tokenizer: Any,
        templates: list[str] | None = None,
        names: list[str] | None = None,
        nouns: dict[str, list[str]] | None = None,
        num_samples: int = 1000,
        symmetric: bool = False,
        prepend_bos: bool = True,
        seed: int | None = None,
    ) -> None:
        self.random: Any = random if seed is None else random.Random(seed)
        self.tokenizer, self.prepend_bos = tokenizer, prepend_bos
        self.templates = self.get_default_templates() if templates is None else templates
        self.names = self.get_default_names() if names is None else names
        self.nouns = self.get_default_nouns() if nouns is None else nouns
        times = num_samples // 2 if symmetric else num_samples
        self.samples = [sample for _ in range(times) for sample in self.get_sample(symmetric)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, idx: int) -> dict[str, Tensor]:
        sample = self.samples[idx]
        prompt = self._ids(sample["text"])
        front = torch.tensor([self.tokenizer.bos_token_id] * self.prepend_bos, dtype=torch.long)
        return {
            "prompt": torch.cat([front, prompt]),
            "IO": self._ids(sample["IO"]),
            "S": self._ids(sample["S"]),
        }

    def _ids(self, text: str) -> Tensor:
        return torch.tensor(self.tokenizer.encode(text, add_special_tokens=False), dtype=torch.long)

    def get_sample(self, symmetric: bool = False) -> list[dict[str, str]]:
        """A sentence of a random template, with random names and nouns; with `symmetric` two."""
        text = self.random.choice(self.templates)
        for kind, some in self.nouns.items():
            text = text.replace(f"[{kind}]", self.random.choice(some))
        a, b = self.random.sample(self.names, 2)
        pairs = [(a, b), (b, a)] if symmetric else [(a, b)]
        return [{"text": text.replace("[A]", x).replace("[B]", y), "IO": f" {x}", "S": f" {y}"} for x, y in pairs]

    @staticmethod
    def get_default_names() -> list[str]:
        return ["John", "Mary"]

    @staticmethod
    def get_default_templates() -> list[str]:
        return [
            "[A] and [B] went to the [LOCATION] to buy [OBJECT]. [B] handed the [OBJECT] to [A]",
            "Then, [B] and [A] went to the [LOCATION]. [B] gave the [OBJECT] to [A]",
        ]

    @staticmethod
    def get_default_nouns() -> dict[str, list[str]]:
        return {"LOCATION": ["store", "market"], "OBJECT": ["milk", "eggs", "bread"]}


@torch.no_grad()
def ioi_eval(
    model: Any,
    dataset: Any = None,
    batch_size: int = 8,
    num_samples: int = 1000,
    tokenizer: Any = None,
    symmetric: bool = False,
) -> dict[str, float]:
    """The mean difference of logits of the indirect object and the subject, and how often it is above 0."""
    if dataset is None:
        dataset = IOIDataset(
            model.tokenizer if tokenizer is None else tokenizer, None, None, None, num_samples, symmetric
        )
    differences = []
    for batch in DataLoader(dataset, batch_size=batch_size, shuffle=True, collate_fn=list):
        prompts = torch.nn.utils.rnn.pad_sequence([sample["prompt"] for sample in batch], batch_first=True)
        logits = model(prompts)
        differences += [_difference(logits[i], sample) for i, sample in enumerate(batch)]
    right = sum(difference > 0 for difference in differences)
    return {"Logit Difference": sum(differences) / len(dataset), "Accuracy": right / len(dataset)}


def _difference(logits: Tensor, sample: Mapping[str, Tensor]) -> float:
    """Of the first tokens in which the two names differ, where the sentence has the name."""
    io, s = sample["IO"], sample["S"]
    first = next(i for i, (a, b) in enumerate(zip(io.tolist(), s.tolist(), strict=False)) if a != b)
    at = logits[len(sample["prompt"]) - len(io) + first - 1]
    return (at[io[first]] - at[s[first]]).item()


NO_DATA = "nnzoo downloads no data sets; evaluate_on_dataset takes any loader of {'tokens': [batch pos]}"
make_wiki_data_loader = Refused("make_wiki_data_loader", NO_DATA)
make_owt_data_loader = Refused("make_owt_data_loader", NO_DATA)
make_pile_data_loader = Refused("make_pile_data_loader", NO_DATA)
make_code_data_loader = Refused("make_code_data_loader", NO_DATA)
make_mmlu_data_loader = Refused("make_mmlu_data_loader", NO_DATA)
evaluate = Refused("evaluate", NO_DATA)
mmlu_eval = Refused("mmlu_eval", NO_DATA)
