"""The head detector demo."""

import torch
from transformer_lens import HookedTransformer
from transformer_lens.head_detector import detect_head

torch.set_grad_enabled(False)
model = HookedTransformer.from_pretrained("nnzoo/tiny-gpt2", device="cpu")
prompt = "river cake Oslo green river cake Oslo green"
prompts = [prompt, "Mary and John and Mary and John and"]
mine = torch.tril(torch.ones(13, 13))[: len(model.to_tokens(prompt)[0]), : len(model.to_tokens(prompt)[0])]
_, cache = model.run_with_cache(prompt, remove_batch_dim=True)

results = {
    "previous": detect_head(model, prompt, "previous_token_head"),
    "duplicate": detect_head(model, prompt, "duplicate_token_head", exclude_bos=True),
    "induction": detect_head(model, prompts, "induction_head", exclude_bos=True, exclude_current_token=True),
    "absolute": detect_head(model, prompts, "previous_token_head", error_measure="abs"),
    "some": detect_head(model, prompt, "previous_token_head", heads=[(0, 1), (2, 3)]),
    "by layer": detect_head(model, prompt, "previous_token_head", heads={1: [0, 2]}, cache=cache),
    "own": detect_head(model, prompt, mine, cache=cache, error_measure="abs"),
}
