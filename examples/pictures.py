"""Pictures of one prompt as pages that open in any browser, without a network: what a notebook would show.

python examples/pictures.py                         the embedded tiny GPT-2
python examples/pictures.py openai-community/gpt2   a checkpoint of the Hub, or a folder
"""

import sys
from pathlib import Path

from nnzoo import LanguageModel
from nnzoo.analysis import attention_patterns, generation_steps, logit_lens, token_losses

name = sys.argv[1] if len(sys.argv) > 1 else "nnzoo/tiny-gpt2"
model = LanguageModel(name)
prompt = "When Mary and John went to the store, John gave a drink to"

pictures = {
    "model": model,
    "hook-points": model.hook_table(),
    "attention": attention_patterns(model, prompt),
    "lens": logit_lens(model, prompt),
    "losses": token_losses(model, prompt),
    "generation": generation_steps(model, prompt, max_new_tokens=10),
}
folder = Path("pictures")
folder.mkdir(exist_ok=True)
for title, picture in pictures.items():
    file = folder / f"{title}.html"
    file.write_text(picture.to_html())
    print(file)
