"""The logit lens: what would the model predict if it stopped after each block?

The final norm and the unembedding are modules of the model, called inside the trace on values of the trace.
"""

from nnzoo import LanguageModel

model = LanguageModel("nnzoo/tiny-llama")
prompt = "The Eiffel Tower is in the city of"

with model.trace(prompt):
    guesses = []
    for block in model.model.layers:
        logits = model.lm_head(model.model.norm(block.output[0]))
        guesses.append(logits[0, -1].softmax(dim=-1).max(dim=-1))

print(prompt)
for layer, (probability, token) in enumerate(guesses):
    print(f"  after block {layer}: {model.tokenizer.decode(token)!r:14} {probability:.2f}")
