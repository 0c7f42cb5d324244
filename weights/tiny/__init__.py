"""The embedded checkpoints: three small trained models, the corpus they learned and the script that trained them.

`nnzoo/tiny-gpt2`, `nnzoo/tiny-llama` and `nnzoo/tiny-mistral` are the folders `gpt2/`, `llama/` and `mistral/` beside
this file, in Hugging Face's own format. `corpus.py` generates what they were trained on and what they never saw,
`tokenizer.py` cuts it into tokens, and `python -m nnzoo.weights.tiny.train gpt2` trains one again.
"""
