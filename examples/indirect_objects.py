"""An indirect-object study: which heads say who is given to, where do they take it from, and is it they who do it?

The two prompts differ in who gives. Path patching to the logits finds the heads that say the name, their patterns show
where they look, path patching into their values finds who puts it there; then both are taken away, and as many others.

python examples/indirect_objects.py                         the embedded tiny GPT-2
python examples/indirect_objects.py openai-community/gpt2   a checkpoint of the Hub, or a folder
"""

import sys

from nnzoo import LanguageModel
from nnzoo.analysis import ablated, attention_patterns, patch_activations, patch_paths

model = LanguageModel(sys.argv[1] if len(sys.argv) > 1 else "nnzoo/tiny-gpt2")
clean = "When Mary and John went to the store, John gave a drink to"
corrupted = "When Mary and John went to the store, Mary gave a drink to"
names = (" Mary", " John")
mary, john = (model.tokenizer.encode(clean + name)[-1] for name in names)


def difference():
    logits = model(clean)[0, -1]
    return (logits[mary] - logits[john]).item()


direct = patch_paths(model, clean, corrupted, names).change  # what each head says to the logits itself
movers = [entry.index for entry in direct.top(2, smallest=True)]
before = patch_paths(model, clean, corrupted, names, receivers=movers, into="v").change
givers = [entry.index for entry in before.top(2, smallest=True)]
others = [entry.index for entry in direct.entries() if entry.index not in movers + givers and entry.index[0] > 0][:2]
print(patch_activations(model, corrupted, clean, names, at="z").restored)
for layer, head in movers:
    [place] = attention_patterns(model, clean).at(layer=layer, head=head, query=-1).top(1)
    print(f"L{layer}H{head} takes the name from {place.place['key']!r} ({place.value:.2f})")
print(f"logit difference: {difference():.2f}")
for heads in (movers, givers, others):
    with ablated(model, heads=heads):
        print(f"without the heads {heads}: {difference():.2f}")
