"""Distributed alignment search: the directions of the stream that carry a fact, learned by a rotation."""

import torch
from nnsight import TransformersModel

model = TransformersModel("nnzoo/tiny-llama", task="text-generation", dispatch=True)
base_prompt, source_prompt = "The capital of France is", "The capital of Italy is"
base_answer = model.tokenizer.encode(" Paris", add_special_tokens=False)[0]
source_answer = model.tokenizer.encode(" Rome", add_special_tokens=False)[0]
LAYER_INDEX, TOKEN_INDEX, N_PATCHING_DIMS = 1, -2, 4
MODEL_HIDDEN_DIM = model.config.hidden_size

source_hidden_states = []
with torch.no_grad():
    with model.trace(source_prompt) as tracer:
        for layer in model.model.layers:
            source_hidden_states.append(layer.output.save())

generator = torch.Generator().manual_seed(0)
start = torch.linalg.qr(torch.randn(MODEL_HIDDEN_DIM, MODEL_HIDDEN_DIM, generator=generator)).Q
rotator = torch.nn.Linear(MODEL_HIDDEN_DIM, MODEL_HIDDEN_DIM, bias=False)
with torch.no_grad():
    rotator.weight.copy_(start)
rotator = torch.nn.utils.parametrizations.orthogonal(rotator).to(model.device)


def patch_linear_subspaces(rotator, base_prompt, source_hidden_states, with_grad=False):
    grad_env = torch.enable_grad if with_grad else torch.no_grad
    with grad_env():
        with model.trace(base_prompt):
            # rotate the base representation
            base = model.model.layers[LAYER_INDEX].output[:, TOKEN_INDEX, :].clone()
            rotated_base = rotator(base)

            # rotate the source representation
            source = source_hidden_states[LAYER_INDEX][:, TOKEN_INDEX, :]
            rotated_source = rotator(source)

            # patch the first n dimensions in the rotated space
            rotated_patch = torch.cat([rotated_source[:, :N_PATCHING_DIMS], rotated_base[:, N_PATCHING_DIMS:]], dim=1)

            # unrotate patched vector back to the original space
            patch = torch.matmul(rotated_patch, rotator.weight)

            # replace base with patch
            model.model.layers[LAYER_INDEX].output[:, TOKEN_INDEX, :] = patch

            patched_logits = model.output.logits[:, -1, :].save()
    return patched_logits


optimizer = torch.optim.SGD(rotator.parameters(), lr=0.05)
losses = []
for _ in range(4):
    optimizer.zero_grad()
    logits = patch_linear_subspaces(rotator, base_prompt, source_hidden_states, with_grad=True)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([source_answer]))
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

after = patch_linear_subspaces(rotator, base_prompt, source_hidden_states)
results = {
    "losses": losses,
    "difference": after[0, source_answer] - after[0, base_answer],
    "rotation": (rotator.weight @ rotator.weight.T - torch.eye(MODEL_HIDDEN_DIM)).abs().max() < 1e-4,
}
