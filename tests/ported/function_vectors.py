"""Function vectors, as in ARENA 1.3 and the mini-paper: mean heads of a task, patched into prompts without examples."""

import nnsight
import torch
from nnsight import TransformersModel

torch.set_grad_enabled(False)
model = TransformersModel("nnzoo/tiny-gpt2", task="text-generation", dispatch=True)
tokenizer = model.tokenizer
N_HEADS = model.config.n_head
N_LAYERS = model.config.n_layer
D_MODEL = model.config.n_embd
D_HEAD = D_MODEL // N_HEADS
prompts = ["The capital of France is", "The capital of Italy is", "The capital of Spain is"]
zero_shot = ["The keys to the cabinet", "Mary gave a drink to", "In the evening"]
completion_ids = [tokenizer.encode(text)[0] for text in (" Paris", " Rome", " Madrid")]

# the mean activation of every head at the last position
with model.trace(prompts):
    z_dict = nnsight.save({})
    for layer in range(N_LAYERS):
        z = model.transformer.h[layer].attn.c_proj.input[:, -1]
        z_dict[layer] = z.reshape(len(prompts), N_HEADS, D_HEAD).mean(dim=0).save()

# which head raises the right answers where there is no example
scores = torch.zeros(N_LAYERS, N_HEADS)
with model.trace() as tracer:
    with tracer.invoke(zero_shot):
        clean = model.lm_head.output[:, -1].log_softmax(-1)[range(3), completion_ids].save()
for layer in range(N_LAYERS):
    for head in range(N_HEADS):
        with model.trace() as tracer:
            with tracer.invoke(zero_shot):
                z = model.transformer.h[layer].attn.c_proj.input
                z.view(3, -1, N_HEADS, D_HEAD)[:, -1, head] = z_dict[layer][head]
                patched = model.lm_head.output[:, -1].log_softmax(-1)[range(3), completion_ids].save()
        scores[layer, head] = (patched - clean).mean()

# the function vector: what the best heads write
top = scores.flatten().topk(3).indices.tolist()
fn_vector = torch.zeros(D_MODEL)
for index in top:
    layer, head = divmod(index, N_HEADS)
    z_sliced = torch.zeros(N_HEADS, D_HEAD)
    z_sliced[head] = z_dict[layer][head]
    out_proj = model.transformer.h[layer].attn.c_proj
    fn_vector += z_sliced.flatten() @ out_proj.weight

with model.trace(zero_shot):
    model.transformer.h[1].output[:, -1] += fn_vector
    steered = model.lm_head.output[:, -1].topk(3).indices.save()

results = {"z": z_dict, "scores": scores, "top": top, "vector": fn_vector, "steered": steered}
