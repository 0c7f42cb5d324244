"""SVDInterpreter: singular directions of weights, read by the unembedding.

Millidge and Black 2022 (https://www.lesswrong.com/posts/mkbGjzxD8d8XqKHzA).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class SVDInterpreter:
    """The tokens that the strongest directions of a head's or an MLP's weights stand for.

    >>> from nnzoo.transformer_lens import HookedTransformer
    >>> model = HookedTransformer.from_pretrained("nnzoo/tiny-gpt2")
    >>> SVDInterpreter(model).get_singular_vectors("OV", 2, num_vectors=3, head_index=1).shape
    torch.Size([774, 1, 3])
    """

    def __init__(self, model: Any) -> None:
        self.model, self.cfg = model, model.cfg

    @torch.no_grad()
    def get_singular_vectors(
        self, vector_type: str, layer_index: int, num_vectors: int = 10, head_index: int | None = None
    ) -> Float[Tensor, "d_vocab 1 num_vectors"]:
        """Logits of the first directions: those a head writes ("OV"), an MLP reads ("w_in") or writes ("w_out")."""
        if not 0 <= layer_index < self.cfg.n_layers:
            raise AssertionError(f"layer_index is 0 to {self.cfg.n_layers - 1}, not {layer_index}")
        block = self.model.blocks[layer_index]
        if vector_type == "OV":
            if head_index is None or not 0 <= head_index < self.cfg.n_heads:
                raise AssertionError(f"head_index is 0 to {self.cfg.n_heads - 1}, not {head_index}")
            directions = block.attn.OV[head_index].V
        elif vector_type == "w_in":
            w_in = block.mlp.W_in.T
            folded = str(self.cfg.normalization_type).endswith("Pre")
            directions = torch.linalg.svd(w_in if folded else w_in * block.ln2.w, full_matrices=False).Vh.T
        elif vector_type == "w_out":
            directions = torch.linalg.svd(block.mlp.W_out, full_matrices=False).Vh.T
        else:
            raise ValueError(f"vector_type is 'OV', 'w_in' or 'w_out', not {vector_type!r}")
        return (directions[:, :num_vectors].T.float() @ self.model.W_U.float()).T[:, None]
