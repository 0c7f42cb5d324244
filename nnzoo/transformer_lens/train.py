"""`train`: next-token training of a HookedTransformer on a data set whose rows have "tokens"."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader


@dataclass
class HookedTransformerTrainConfig:
    """What `train` does, by TransformerLens's names and with its defaults."""

    num_epochs: int
    batch_size: int
    lr: float = 1e-3
    seed: int = 0
    momentum: float = 0.0  # of "SGD"
    max_grad_norm: float | None = None
    weight_decay: float | None = None
    optimizer_name: str = "Adam"  # "Adam", which with a weight decay is AdamW, "AdamW" or "SGD"
    device: Any = None  # None: a GPU where there is one
    warmup_steps: int = 0
    save_every: int | None = None  # steps between state dicts in save_dir
    save_dir: str | None = None
    wandb: bool = False
    wandb_project_name: str | None = None
    print_every: int | None = 50  # steps between losses beside the bar
    max_steps: int | None = None  # of each epoch


def train(model: Any, config: HookedTransformerTrainConfig, dataset: Any) -> Any:
    """Train a model in place, and give it back. Rows are {"tokens": [pos]}; the loss is that of each next token.

    Raises ValueError for another optimizer, NotImplementedError for wandb.
    """
    from tqdm.auto import tqdm

    from nnzoo.transformer_lens.utils import get_device

    if config.wandb:
        raise NotImplementedError("wandb is not called: log the losses of a loop of your own")
    torch.manual_seed(config.seed)
    device = get_device() if config.device is None else config.device
    model.train()
    optimizer = _optimizer(model, config)
    warmup = LambdaLR(optimizer, lambda step: min(1.0, step / config.warmup_steps if config.warmup_steps else 1.0))
    model.to(device)
    batches = DataLoader(dataset, batch_size=config.batch_size, shuffle=True)
    for epoch in tqdm(range(1, config.num_epochs + 1)):
        # enumerated first: tqdm of a DataLoader draws a random number of its own, and the shuffling would be another
        bar = tqdm(enumerate(batches), total=len(batches), desc=f"epoch {epoch}")
        for step, batch in bar:
            loss = model(batch["tokens"].to(device), return_type="loss")
            loss.backward()
            if config.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            warmup.step()
            optimizer.zero_grad()
            _report(model, config, step, loss, bar)
            if config.max_steps is not None and step >= config.max_steps:
                break
    return model


def _optimizer(model: nn.Module, config: HookedTransformerTrainConfig) -> Optimizer:
    decay = 0.0 if config.weight_decay is None else config.weight_decay
    if config.optimizer_name == "SGD":
        return SGD(model.parameters(), lr=config.lr, weight_decay=decay, momentum=config.momentum)
    if config.optimizer_name not in ("Adam", "AdamW"):
        raise ValueError(f"optimizer_name is 'Adam', 'AdamW' or 'SGD', not {config.optimizer_name!r}")
    if config.weight_decay is None:
        return Adam(model.parameters(), lr=config.lr)
    return AdamW(model.parameters(), lr=config.lr, weight_decay=decay)


def _report(model: nn.Module, config: HookedTransformerTrainConfig, step: int, loss: torch.Tensor, bar: Any) -> None:
    if config.print_every is not None and step % config.print_every == 0:
        bar.set_postfix(loss=f"{loss.item():.4f}")
    if config.save_every is not None and config.save_dir is not None and step % config.save_every == 0:
        torch.save(model.state_dict(), Path(config.save_dir) / f"model_{step}.pt")
