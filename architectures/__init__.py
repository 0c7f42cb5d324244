"""The models, in pure PyTorch: GPT-2, LLaMA and Mistral, one file each. Read them to learn a transformer."""
