"""A first trace: read two places of one forward pass, then change one of them and see what the model says.

python examples/first_trace.py                         the embedded tiny GPT-2
python examples/first_trace.py openai-community/gpt2   a checkpoint of the Hub, or a folder
python examples/first_trace.py meta-llama/Llama-3.2-1B
"""

import sys

from nnzoo import LanguageModel

name = sys.argv[1] if len(sys.argv) > 1 else "nnzoo/tiny-gpt2"
model = LanguageModel(name)
middle = len(model.blocks) // 2
prompt = "The capital of France is"

with model.trace(prompt):
    hidden = model.blocks[middle].output[0].save()  # the residual stream after a block in the middle
    logits = model.output.save()

print(f"after block {middle}: {list(hidden.shape)}, that is [batch, pos, d_model]")
print(f"{prompt}{model.tokenizer.decode(logits[0, -1].argmax())}")

with model.trace(prompt):
    model.blocks[1].attn.output[0][:] = 0  # the block's attention adds nothing
    ablated = model.output.save()

answer = logits[0, -1].argmax()
before, after = (each[0, -1].softmax(dim=-1)[answer].item() for each in (logits, ablated))
print(f"without the attention of block 1, its probability goes from {before:.2f} to {after:.2f}")
