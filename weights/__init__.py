"""Everything that knows Hugging Face."""
