"""The tokenizer of the tiny checkpoints: GPT-2's bytes, the corpus's words whole.

A token carries the space before it, as in GPT-2: " Mary" is one token, and "1732" is "17" and "32". Words that the
corpus never has fall into bytes, so that every text survives the round trip. `<|endoftext|>` begins a text if anything
does, ends it, separates texts, and pads.
"""

from itertools import islice

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nnzoo.weights.tiny.corpus import WORDS, sentences

END_OF_TEXT = "<|endoftext|>"
CONTEXT_LENGTH = 128

# GPT-2's, except that digits go in pairs: a year is a century and a number below a hundred.
PIECES = r" ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer that the three checkpoints share; two calls give the same one.

    >>> tokenizer = build_tokenizer()
    >>> tokenizer.tokenize("The keys to Mary's cabinet")
    ['The', 'Ġkeys', 'Ġto', 'ĠMary', "'", 's', 'Ġcabinet']
    >>> tokenizer.decode(tokenizer.encode("a word that it never saw"))
    'a word that it never saw'
    """
    pieces = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    vocabulary = [END_OF_TEXT, *sorted(pre_tokenizers.ByteLevel.alphabet()), *_words(pieces)]
    # ignore_merges takes a word that is in the vocabulary whole; without merges, any other one stays bytes.
    model = models.BPE({token: i for i, token in enumerate(vocabulary)}, merges=[], ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def _words(pieces: pre_tokenizers.PreTokenizer) -> list[str]:
    """Every piece of the corpus that is longer than a byte, in the tokenizer's spelling."""
    texts = [*islice(sentences(seed=0), 50_000), *(f" {word}" for word in WORDS), *(f"{n:02}" for n in range(100))]
    found = {piece for text in texts for piece, _ in pieces.pre_tokenize_str(text)}
    return sorted(piece for piece in found if len(piece) > 1)
