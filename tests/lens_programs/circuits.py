"""Weights as circuits: FactoredMatrix, the SVD of a head's OV circuit, copying scores, composition."""

import torch
from transformer_lens import FactoredMatrix, HookedTransformer, SVDInterpreter

torch.set_grad_enabled(False)
model = HookedTransformer.from_pretrained("nnzoo/tiny-gpt2", device="cpu")
head_index, layer = 1, 2
OV_circuit = FactoredMatrix(model.W_V[layer, head_index], model.W_O[layer, head_index])
full_OV_circuit = model.W_E @ OV_circuit @ model.W_U
indices = torch.tensor([3, 50, 400, 700])
full_OV_circuit_sample = full_OV_circuit[indices, indices].AB

all_heads = model.OV
eigenvalues = (model.W_E @ all_heads @ model.W_U).eigenvalues
copying = (eigenvalues.sum(dim=-1) / eigenvalues.abs().sum(dim=-1)).real
U, S, V = OV_circuit.svd()

results = {
    "shape": list(full_OV_circuit.shape),
    "sample": full_OV_circuit_sample,
    "copying": copying,
    "singular values": S,
    "rebuilt": ((U * S) @ V.transpose(-1, -2) - OV_circuit.AB).abs().max(),
    "norms": model.QK.norm(),
    "one": all_heads[layer, head_index].norm(),
    "row": full_OV_circuit[7, :].AB[:, :5],
    "even": (OV_circuit.make_even().AB - OV_circuit.AB).abs().max(),
    "scaled": (2 * OV_circuit).norm(),
    "transposed": OV_circuit.T.shape[0],
    "corner": model.QK.get_corner(2),
    "composition": model.all_composition_scores("K"),
    "V composition": model.all_composition_scores("V"),
    "labels": model.all_head_labels(),
    "SVD interpreter": SVDInterpreter(model).get_singular_vectors("w_in", 1, num_vectors=2).abs().sum(0),
    "written": model.blocks[1].attn.W_O.norm(),
    "b_Q": model.b_Q[1, 2, :5],
    "mlp": [model.W_in.norm(), model.blocks[0].mlp.W_out.norm(), model.b_out.norm()],
}
