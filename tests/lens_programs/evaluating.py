"""The evaluations that need no data, and the small functions of `utils`."""

import random

import torch
from transformer_lens import HookedTransformer, evals, utils

torch.set_grad_enabled(False)
model = HookedTransformer.from_pretrained("nnzoo/tiny-gpt2", device="cpu")
torch.manual_seed(0)
random.seed(0)
dataset = evals.IOIDataset(model.tokenizer, num_samples=12, seed=42)
batches = [{"tokens": model.to_tokens(["Mary gave a drink to John.", "The capital of Italy is Rome."])}] * 2
names = ["q", "pattern", "attn", "resid_pre", "scale", "mlp_post", "embed", "normalized"]
x = torch.linspace(-3, 3, 24).view(2, 3, 4)


class Texts:
    """As much of a data set as is asked for."""

    def __init__(self, columns):
        self.columns = self.features = columns

    def remove_columns(self, names):
        return Texts({name: column for name, column in self.columns.items() if name not in names})

    def map(self, function, batched, remove_columns, num_proc):
        return Texts(function(self.columns))

    def set_format(self, type, columns):
        self.columns = {name: torch.tensor(self.columns[name]) for name in columns}


texts = Texts({"text": ["Mary gave a drink to John.", "", "The capital of Italy is Rome."], "id": [1, 2, 3]})
tokenized = utils.tokenize_and_concatenate(texts, model.tokenizer, max_length=5)
one_row = utils.tokenize_and_concatenate(texts, model.tokenizer, max_length=40, add_bos_token=False)

results = {
    "rows": [tokenized.columns["tokens"], one_row.columns["tokens"]],
    "sanity": evals.sanity_check(model),
    "data": evals.evaluate_on_dataset(model, batches, device="cpu"),
    "ioi": evals.ioi_eval(model, dataset=dataset),
    "ioi text": dataset.samples[0]["text"],
    "names": [utils.get_act_name(name, 2) for name in names] + [utils.get_act_name(name) for name in [*names, "k6"]],
    "typed names": [utils.get_act_name("scale", 4, "ln1"), utils.get_act_name("k", 6, "a")],
    "gelu": [utils.gelu_new(x), utils.gelu_fast(x), utils.solu(x)],
    "corner": utils.get_corner(x, 2),
    "without batch": [list(utils.remove_batch_dim(x).shape), list(utils.remove_batch_dim(x[:1]).shape)],
    "numpy": utils.to_numpy(x[0]).tolist(),
    "offsets": utils.get_offset_position_ids(1, torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])),
    "sums": utils.get_cumsum_along_dim(x[0], -1, reverse=True),
    "triangular": [utils.is_square(x[0]), utils.is_lower_triangular(torch.eye(3))],
    "slices": [utils.Slice((1, 3)).apply(x, dim=1), utils.Slice([0, -1]).apply(x, dim=-1), utils.Slice(1).apply(x)],
    "repeated": utils.repeat_along_head_dimension(x, 2).sum(),
    "sampled": [utils.sample_logits(x[:, 0], temperature=0.0), utils.sample_logits(x[:, 1], top_k=1)],
}
