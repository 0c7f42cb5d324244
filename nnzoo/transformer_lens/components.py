"""The classes of a model's parts, for `isinstance`; a part is one of a model, and is not made by itself."""

from nnzoo.transformer_lens.parts import MLP, Attention, Embed, LayerNorm, PosEmbed, TransformerBlock, Unembed
from nnzoo.transformer_lens.refusals import Refused

AbstractAttention = GroupedQueryAttention = Attention
LayerNormPre = RMSNorm = RMSNormPre = LayerNorm
GatedMLP = MLP
BertBlock, BertEmbed, BertMLMHead, BertNSPHead, BertPooler, TokenTypeEmbed = (
    Refused(name, "nnzoo has no BERT")
    for name in ("BertBlock", "BertEmbed", "BertMLMHead", "BertNSPHead", "BertPooler", "TokenTypeEmbed")
)
T5Attention, T5Block = (Refused(name, "nnzoo has no T5") for name in ("T5Attention", "T5Block"))
MoE = Refused("MoE", "nnzoo has no mixture of experts")

__all__ = [
    "MLP",
    "AbstractAttention",
    "Attention",
    "BertBlock",
    "BertEmbed",
    "BertMLMHead",
    "BertNSPHead",
    "BertPooler",
    "Embed",
    "GatedMLP",
    "GroupedQueryAttention",
    "LayerNorm",
    "LayerNormPre",
    "MoE",
    "PosEmbed",
    "RMSNorm",
    "RMSNormPre",
    "T5Attention",
    "T5Block",
    "TokenTypeEmbed",
    "TransformerBlock",
    "Unembed",
]
