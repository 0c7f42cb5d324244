"""The attribution patching tutorial: gradients of the corrupted run times the difference to the clean one, by head."""

import einops
import torch
from nnsight import TransformersModel

model = TransformersModel("nnzoo/tiny-gpt2", task="text-generation", dispatch=True)
prompts = [
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
]
answers = [(" Mary", " John"), (" John", " Mary")]
clean_tokens = model.tokenizer(prompts, return_tensors="pt")["input_ids"]
corrupted_tokens = clean_tokens[[1, 0]]
answer_token_indices = torch.tensor([[model.tokenizer(a)["input_ids"][0] for a in pair] for pair in answers])


def get_logit_diff(logits, answer_token_indices=answer_token_indices):
    logits = logits[:, -1, :]
    correct_logits = logits.gather(1, answer_token_indices[:, 0].unsqueeze(1))
    incorrect_logits = logits.gather(1, answer_token_indices[:, 1].unsqueeze(1))
    return (correct_logits - incorrect_logits).mean()


CLEAN_BASELINE, CORRUPTED_BASELINE = (
    get_logit_diff(model.trace(tokens, trace=False).logits) for tokens in (clean_tokens, corrupted_tokens)
)


def ioi_metric(logits, answer_token_indices=answer_token_indices):
    return (get_logit_diff(logits, answer_token_indices) - CORRUPTED_BASELINE) / (CLEAN_BASELINE - CORRUPTED_BASELINE)


clean_out, corrupted_out, corrupted_grads = [], [], []

with model.trace(clean_tokens):
    for layer in model.transformer.h:
        clean_out.append(layer.attn.c_proj.input.save())

with model.trace(corrupted_tokens):
    for layer in model.transformer.h:
        out = layer.attn.c_proj.input
        out.requires_grad_(True)
        corrupted_out.append(out.save())
    logits = model.lm_head.output
    with ioi_metric(logits).backward():
        for out in reversed(corrupted_out):
            corrupted_grads.append(out.grad.save())
corrupted_grads = list(reversed(corrupted_grads))

patching_results = []
for corrupted_grad, corrupted, clean in zip(corrupted_grads, corrupted_out, clean_out, strict=True):
    residual_attr = einops.reduce(
        corrupted_grad * (clean - corrupted),
        "batch pos (head dim) -> head pos",
        "sum",
        head=model.config.n_head,
        dim=model.config.n_embd // model.config.n_head,
    )
    patching_results.append(residual_attr.detach())

results = {"baselines": [CLEAN_BASELINE, CORRUPTED_BASELINE], "patching": torch.stack(patching_results)}
