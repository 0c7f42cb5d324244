"""A first trace: read two places of one forward pass, then change one of them and see what the model says."""

from nnzoo import LanguageModel

model = LanguageModel("nnzoo/tiny-gpt2")
prompt = "The capital of France is"

with model.trace(prompt):
    hidden = model.transformer.h[2].output[0].save()  # the residual stream after block 2
    logits = model.output.save()

print(f"after block 2: {list(hidden.shape)}, that is [batch, pos, d_model]")
print(f"{prompt}{model.tokenizer.decode(logits[0, -1].argmax())}")

with model.trace(prompt):
    model.transformer.h[1].attn.output[0][:] = 0  # the block's attention adds nothing
    ablated = model.output.save()

answer = logits[0, -1].argmax()
before, after = (each[0, -1].softmax(dim=-1)[answer].item() for each in (logits, ablated))
print(f"without the attention of block 1, its probability goes from {before:.2f} to {after:.2f}")
