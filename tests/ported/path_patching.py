"""Path patching on indirect objects: every head in one trace, then paths from one head with the rest frozen."""

import nnsight
import torch
from nnsight import TransformersModel

torch.set_grad_enabled(False)
model = TransformersModel("nnzoo/tiny-gpt2", task="text-generation", dispatch=True)
blocks = model.transformer.h
n_layers, n_heads = model.config.n_layer, model.config.n_head
d_head = model.config.n_embd // n_heads
CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"
IO_TOKEN = model.tokenizer.encode(" Mary")[0]  # the indirect object: correct answer
S_TOKEN = model.tokenizer.encode(" John")[0]  # the subject: the distractor


def logit_diff(logits):
    return logits[0, -1, IO_TOKEN] - logits[0, -1, S_TOKEN]


with model.trace(CLEAN):
    clean_z = nnsight.save([block.attn.c_proj.input for block in blocks])
    clean_ld = logit_diff(model.output.logits).save()
with model.trace(CORRUPTED):
    corrupted_z = nnsight.save([block.attn.c_proj.input for block in blocks])

with model.trace(CORRUPTED):
    corrupted_mlp = nnsight.save([block.mlp.output for block in blocks])
    corrupted_ld = logit_diff(model.output.logits).save()

# node level: the whole sweep is one trace, one invoke for each head
with model.trace() as tracer:
    effects = nnsight.save([])
    for layer in range(n_layers):
        for head in range(n_heads):
            with tracer.invoke(CORRUPTED):
                channels = slice(head * d_head, (head + 1) * d_head)
                blocks[layer].attn.c_proj.input[:, :, channels] = clean_z[layer][:, :, channels]
                effects.append(logit_diff(model.output.logits))
recovery = [(ld - corrupted_ld) / (clean_ld - corrupted_ld) for ld in effects]


def path_patch(sender, receiver_layer):
    """What a sender changes in a later attention's queries, keys and values, with all other heads as they were."""
    layer, head = sender
    channels = slice(head * d_head, (head + 1) * d_head)
    with model.trace(CORRUPTED):
        for later in range(receiver_layer):
            z = corrupted_z[later].clone()
            if later == layer:
                z[:, :, channels] = clean_z[later][:, :, channels]
            blocks[later].attn.c_proj.input[:] = z
            blocks[later].mlp.output = corrupted_mlp[later]
        qkv = blocks[receiver_layer].attn.c_attn.output.save()
    with model.trace(CORRUPTED):
        blocks[receiver_layer].attn.c_attn.output = qkv
        ld = logit_diff(model.output.logits).save()
    return (ld - corrupted_ld) / (clean_ld - corrupted_ld)


results = {
    "baselines": [clean_ld, corrupted_ld],
    "recovery": recovery,
    "paths": [path_patch((0, head), receiver) for head in range(n_heads) for receiver in (1, 2, 3)],
}
