"""The logit lens: what would the model predict if it stopped after each block?

The final norm and the unembedding are modules of the model, called inside the trace on values of the trace.

python examples/logit_lens.py                             the embedded tiny LLaMA
python examples/logit_lens.py mistralai/Mistral-7B-v0.1   a checkpoint of the Hub, or a folder
"""

import sys

from nnzoo import LanguageModel

name = sys.argv[1] if len(sys.argv) > 1 else "nnzoo/tiny-llama"
model = LanguageModel(name)
prompt = "The Eiffel Tower is in the city of"

with model.trace(prompt):
    guesses = []
    for block in model.blocks:
        logits = model.unembed(model.ln_final(block.output[0]))
        guesses.append(logits[0, -1].softmax(dim=-1).max(dim=-1))

print(prompt)
for layer, (probability, token) in enumerate(guesses):
    print(f"  after block {layer}: {model.tokenizer.decode(token)!r:14} {probability:.2f}")
