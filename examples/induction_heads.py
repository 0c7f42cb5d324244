"""An induction study: which heads copy what came before, and is it they who do it?

Random tokens come twice. The heads that look at what followed last time are found by their attention, then taken away;
so are as many others, chosen by chance.

python examples/induction_heads.py                         the embedded tiny GPT-2
python examples/induction_heads.py openai-community/gpt2   a checkpoint of the Hub, or a folder
python examples/induction_heads.py meta-llama/Llama-3.2-1B
"""

import random
import sys

from nnzoo import LanguageModel
from nnzoo.analysis import ablated, induction_scores, repeated_tokens, token_losses

name = sys.argv[1] if len(sys.argv) > 1 else "nnzoo/tiny-gpt2"
model = LanguageModel(name)
period = 20
tokens = repeated_tokens(model, n=4, period=period)
scores = induction_scores(model, tokens)
heads = [entry.index for entry in scores.top(max(4, scores.values.numel() // 40))]
others = [entry.index for entry in scores.entries() if entry.index not in heads]
others = random.Random(0).sample([head for head in others if head[0] > 0], len(heads))  # block 0 feeds all others


def loss():
    return token_losses(model, tokens).values[:, period:].mean().item()  # of the second copy


print(scores)
print(f"loss of the second copy: {loss():.2f}")
with ablated(model, heads=heads):
    print(f"without the heads {heads}: {loss():.2f}")
with ablated(model, heads=others):
    print(f"without the heads {others}: {loss():.2f}")
