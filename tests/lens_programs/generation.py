"""Generation, drawn and greedy, one text and several; a KV cache by hand; text and tokens."""

import torch
from transformer_lens import HookedTransformer

torch.set_grad_enabled(False)
model = HookedTransformer.from_pretrained("nnzoo/tiny-gpt2", device="cpu")
quiet = {"verbose": False}
greedy = model.generate("The capital of France is", max_new_tokens=8, temperature=0.0, **quiet)
several = model.generate(
    ["The capital of Italy is", "Mary gave a drink to"], max_new_tokens=4, do_sample=False, **quiet
)
torch.manual_seed(1)
sampled = model.generate(model.to_tokens("When Mary and"), max_new_tokens=10, temperature=1.3, **quiet)
torch.manual_seed(2)
narrow = model.generate("When Mary and", max_new_tokens=10, top_k=5, freq_penalty=1.0, stop_at_eos=False, **quiet)
torch.manual_seed(3)
nucleus = model.generate("When Mary and", max_new_tokens=10, top_p=0.8, return_type="tokens", **quiet)

padded = model.to_tokens(["The capital of France is", "Mary"])
left = model(["The capital of France is", "Mary"], padding_side="left")
rotary = HookedTransformer.from_pretrained("nnzoo/tiny-mistral", device="cpu", default_padding_side="left")

results = {
    "greedy": greedy,
    "several": several,
    "sampled": sampled,
    "narrow": narrow,
    "nucleus": nucleus,
    "padded": padded,
    "padded left": model.to_tokens(["The capital of France is", "Mary"], padding_side="left"),
    "no bos": model.to_tokens("Mary", prepend_bos=False),
    "left": left[:, -1, :20],
    "right": model(["The capital of France is", "Mary"])[1, 1, :20],
    "str tokens": model.to_str_tokens(["Mary gave", "John"]),
    "string": model.to_string(padded),
    "mistral left": rotary(["The capital of France is", "Mary"])[:, -1, :20],
    "mistral": rotary.generate("The capital of France is", max_new_tokens=5, do_sample=False, verbose=False),
    "short": model.generate(
        "Mary", max_new_tokens=3, do_sample=False, prepend_bos=False, return_type="tokens", **quiet
    ),
}
