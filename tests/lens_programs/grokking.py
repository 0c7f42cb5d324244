"""The grokking demo: modular addition from scratch, without norms and biases; its Fourier basis; ablations."""

import copy

import einops
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

p, frac_train = 113, 0.3
a_vector = einops.repeat(torch.arange(p), "i -> (i j)", j=p)
b_vector = einops.repeat(torch.arange(p), "j -> (i j)", i=p)
equals_vector = einops.repeat(torch.tensor(113), " -> (i j)", i=p, j=p)
dataset = torch.stack([a_vector, b_vector, equals_vector], dim=1)
labels = (dataset[:, 0] + dataset[:, 1]) % p
torch.manual_seed(598)
indices = torch.randperm(p * p)
cutoff = int(p * p * frac_train)
train_data, train_labels = dataset[indices[:cutoff]], labels[indices[:cutoff]]
test_data, test_labels = dataset[indices[cutoff:]], labels[indices[cutoff:]]

cfg = HookedTransformerConfig(
    n_layers=1,
    n_heads=4,
    d_model=128,
    d_head=32,
    d_mlp=512,
    act_fn="relu",
    normalization_type=None,
    d_vocab=p + 1,
    d_vocab_out=p,
    n_ctx=3,
    init_weights=True,
    device="cpu",
    seed=999,
)
model = HookedTransformer(cfg)
for name, param in model.named_parameters():  # biases make it harder to read
    if "b_" in name:
        param.requires_grad = False
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1.0, betas=(0.9, 0.98))


def loss_fn(logits, labels):
    if len(logits.shape) == 3:
        logits = logits[:, -1]
    logits = logits.to(torch.float64)
    log_probs = logits.log_softmax(dim=-1)
    return -log_probs.gather(dim=-1, index=labels[:, None])[:, 0].mean()


train_losses, model_checkpoints = [], []
with torch.no_grad():
    test_loss = loss_fn(model(test_data), test_labels)
for _ in range(3):
    train_loss = loss_fn(model(train_data), train_labels)
    train_loss.backward()
    train_losses.append(train_loss.item())
    optimizer.step()
    optimizer.zero_grad()
    model_checkpoints.append(copy.deepcopy(model.state_dict()))

model.load_state_dict(model_checkpoints[0])
with torch.no_grad():
    original_logits, cache = model.run_with_cache(train_data[:200])
    W_E = model.embed.W_E[:-1]
    neuron_acts = cache["post", 0, "mlp"][:, -1, :]
    W_logit = model.blocks[0].mlp.W_out @ model.unembed.W_U
    fourier = torch.stack([torch.cos(2 * torch.pi * torch.arange(p) * k / p) for k in range(1, 9)])
    fourier = fourier / fourier.norm(dim=-1, keepdim=True)

    def keep_one_frequency(acts, hook):
        acts[:, :, 100:] = 0
        return acts

    ablated = model.run_with_hooks(train_data[:200], fwd_hooks=[("blocks.0.mlp.hook_post", keep_one_frequency)])

results = {
    "train losses": train_losses,
    "test loss": test_loss,
    "trained": sorted(name for name, param in model.named_parameters() if param.requires_grad),
    "biases": sum(param.abs().sum() for name, param in model.named_parameters() if "b_" in name),
    "embedding": (fourier @ W_E).norm(dim=-1),
    "neurons": neuron_acts.mean(dim=0)[:9],
    "pattern": cache["pattern", 0][:3, :, -1, :],
    "W_logit": W_logit[:3, :3],
    "logits": original_logits[:3, -1, :5],
    "ablated": loss_fn(ablated, train_labels[:200]),
}
