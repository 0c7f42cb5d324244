"""LanguageModel: a model by Hugging Face's paths, driven by traces."""

from collections.abc import Mapping
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from nnzoo import generation
from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.architectures.text import pad_left
from nnzoo.tracing.envoy import Envoy
from nnzoo.tracing.lazy import first_lazy
from nnzoo.tracing.recorder import TraceError
from nnzoo.tracing.shapes import firing_order
from nnzoo.tracing.tracer import Tracer
from nnzoo.weights.checkpoint import open_checkpoint
from nnzoo.weights.config import family_of, skeleton
from nnzoo.weights.paths import paths_of
from nnzoo.weights.saving import save

Prompt = str | list[str] | list[int] | list[list[int]] | Tensor | Mapping[str, Any]


class LanguageModel(Envoy):
    """A language model from a Hugging Face folder or id, or an embedded one: "nnzoo/tiny-gpt2".

    Config and tokenizer are found at once, weights are read at the first run (at once with `dispatch=True`).
    `dtype` (or `torch_dtype`) converts the weights, `device` (or `device_map`) places them. `block_output="tensor"`
    lets a decoder block's `.output` be the bare tensor, as newer transformers have it, instead of a tuple `(hidden,)`.

    >>> model = LanguageModel("nnzoo/tiny-gpt2")
    >>> with model.trace("The capital of France is"):
    ...     hidden = model.transformer.h[1].output[0].save()
    ...     logits = model.output.save()
    >>> logits.shape[:2] == hidden.shape[:2]
    True
    """

    def __init__(
        self,
        path_or_id: str | Path,
        *,
        device: str | torch.device | None = None,
        device_map: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        block_output: str = "tuple",
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        tokenizer: Any = None,
        dispatch: bool = False,
    ) -> None:
        super().__init__(self, "")
        if block_output not in ("tuple", "tensor"):
            raise ValueError(f'block_output is "tuple" or "tensor", not {block_output!r}')
        self.block_output = block_output
        self.device = _device(device if device is not None else device_map)
        self._checkpoint = open_checkpoint(path_or_id, revision=revision, cache_dir=cache_dir, token=token)
        self._dtype = dtype if dtype is not None else torch_dtype
        self.config = self._checkpoint.config
        self.skeleton = skeleton(self.config).to(self._checkpoint.dtype(self._dtype))  # names, shapes; no weights
        self.order = {name: i for i, name in enumerate(firing_order(self.skeleton))}
        self.paths = paths_of(self.config)
        self._native: HookedModel | None = None
        self._tokenizer: Any = tokenizer
        self.lock = RLock()  # one pass at a time: hook points are the model's, not a thread's
        self._tracer: ContextVar[Tracer | None] = ContextVar("tracer", default=None)
        if dispatch:
            self.dispatch()

    # --- the model -----------------------------------------------------------------------------------------------

    @property
    def _model(self) -> HookedModel:
        """The native model, with weights and the immediate API."""
        with self.lock:
            if self._native is None:
                self._native = self._checkpoint.load(dtype=self._dtype, device=self.device)
        return self._native

    def dispatch(self) -> "LanguageModel":
        """Read the weights now, if they were not yet; gives the model itself."""
        _ = self._model
        return self

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer; transformers is imported when it is first asked for.

        Raises ValueError where the checkpoint has none.
        """
        if self._tokenizer is None:
            if self._checkpoint.tokenizer is None:
                raise ValueError(f"{self._checkpoint.name} has no tokenizer: pass token ids, or set model.tokenizer")
            self._tokenizer = self._checkpoint.tokenizer()
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as a Hugging Face folder, which transformers and nnzoo load."""
        save(self._model, folder)

    def get(self, path: str) -> Envoy:
        """The module at a dotted Hugging Face path: `model.get("transformer.h.3.attn")`."""
        envoy: Any = self
        for part in path.split("."):
            envoy = envoy[int(part)] if part.isdigit() else getattr(envoy, part)
        return envoy

    def __call__(self, prompt: Any, **kwargs: Any) -> Any:
        """Run the model: logits [batch pos d_vocab]; further arguments are those of the native model."""
        tokens, mask = self.prepare(prompt, kwargs.pop("attention_mask", None))
        with self.lock:
            return self._model(tokens, attention_mask=mask, **kwargs)

    def __repr__(self) -> str:
        return f"LanguageModel({self._checkpoint.name!r}, {type(self.skeleton).__name__})"

    def apply(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A module of the model applied to values of the body or to real ones, outside of any pass."""
        name = self._native_names.get(path)
        if name is None:
            raise TypeError(
                f"{path or 'the model'} cannot be called on its own; those that can: norms, MLPs, projections"
            )
        lazy = first_lazy(args)
        if lazy is None:
            return self._model.get_submodule(name)(*args, **kwargs)

        def call(*args: Any, **kwargs: Any) -> Tensor:
            return self._model.get_submodule(name)(*args, **kwargs)

        return lazy._recorder.record(call, args, kwargs, shapes=self.skeleton.get_submodule(name))

    @cached_property
    def parameter_names(self) -> dict[str, str]:
        """The native parameter at each Hugging Face name: {"lm_head.weight": "unembed.weight", ...}."""
        names = family_of(self.config).parameters(self.config.n_layers)
        there = dict(self.skeleton.named_parameters(remove_duplicate=False))
        return {theirs: ours for theirs, ours in names.items() if ours in there}

    @cached_property
    def _native_names(self) -> dict[str, str]:
        """The native module at each Hugging Face path that is a function of one tensor."""
        tensors = self.parameter_names
        leaves = {theirs.rpartition(".")[0]: ours.rpartition(".")[0] for theirs, ours in tensors.items()}
        mlps = {
            theirs.rpartition(".")[0]: ours.rpartition(".")[0] for theirs, ours in leaves.items() if ".mlp." in ours
        }
        return {**leaves, **mlps}

    # --- tracing -------------------------------------------------------------------------------------------------

    def trace(
        self,
        prompt: Prompt | None = None,
        *,
        attention_mask: Tensor | None = None,
        validate: bool = True,
        scan: bool = True,
        remote: bool = False,
    ) -> Tracer:
        """Look into one forward pass: `with model.trace("The Eiffel Tower is in") as tracer: ...`.

        The prompt is text, ids [pos] or [batch pos], several texts (padded on the left), or a tokenizer's dict.
        Shapes are always checked, without running the model: `validate` and `scan` ask for what is so anyway.
        """
        if remote:
            raise ValueError("remote=True needs a server to send the trace to, and this version has none")
        if prompt is None:
            raise TypeError(
                "trace() without a prompt, for several invokes, is not implemented yet: model.trace(prompt)"
            )
        return Tracer(self, *self.prepare(prompt, attention_mask))

    def generate(
        self, prompt: Prompt, *, max_new_tokens: int, attention_mask: Tensor | None = None, do_sample: bool = False
    ) -> Int[Tensor, "batch total"]:
        """The prompt's ids followed by at most `max_new_tokens` greedy ones, until the end-of-text token."""
        if self._tracer.get() is not None:
            raise TraceError("generate() inside a trace would not see the body's edits, and is not implemented yet")
        if do_sample:
            raise ValueError("do_sample=True is not implemented; generate decodes greedily")
        tokens, mask = self.prepare(prompt, attention_mask)
        settings = self._checkpoint.origin.generation
        stops = settings.get("eos_token_id")
        stops = [stops] if isinstance(stops, int) else stops or []
        pad = settings.get("pad_token_id")
        with self.lock:
            return generation.generate(
                self._model,
                tokens,
                mask,
                max_new_tokens=max_new_tokens,
                eos_token_ids=stops,
                pad_token_id=pad if pad is not None else (stops[0] if stops else 0),  # as transformers does
            )

    @property
    def tracer(self) -> Tracer:
        """The trace whose body is running. Raises TraceError outside of one."""
        tracer = self._tracer.get()
        if tracer is None:
            raise TraceError("values exist inside a trace only: with model.trace(prompt): ...")
        return tracer

    def enter(self, tracer: Tracer) -> None:
        """A body begins. Raises TraceError inside another one."""
        if self._tracer.get() is not None:
            raise TraceError("a trace of this model is open already; leave it before you begin another")
        self._tracer.set(tracer)

    def leave(self, tracer: Tracer) -> None:
        """A body ends."""
        self._tracer.set(None)

    # --- prompts -------------------------------------------------------------------------------------------------

    def prepare(
        self, prompt: Any, attention_mask: Tensor | None = None
    ) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"] | None]:
        """Ids and mask of any kind of prompt, on the model's device."""
        if isinstance(prompt, Mapping):
            unknown = sorted(prompt.keys() - {"input_ids", "attention_mask", "token_type_ids"})
            if unknown or "input_ids" not in prompt:
                raise ValueError(f"a prompt's dict has input_ids and attention_mask, not {unknown or sorted(prompt)}")
            prompt, attention_mask = prompt["input_ids"], prompt.get("attention_mask", attention_mask)
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], str):
            rows = prompt if isinstance(prompt[0], (list, tuple)) else [prompt]
            prompt, padding = pad_left([list(row) for row in rows], 0, self.device)
            if attention_mask is not None and padding is not None:
                raise ValueError("rows of different lengths are padded here, and take no attention_mask")
            attention_mask = padding if attention_mask is None else attention_mask
        if attention_mask is not None:
            attention_mask = torch.as_tensor(attention_mask)
        if isinstance(prompt, (str, list)):
            self.skeleton.tokenizer = self.tokenizer
        return self.skeleton.tokens_and_mask(prompt, attention_mask, self.device)


def _device(device: Any) -> torch.device:
    if isinstance(device, dict):
        raise TypeError(f"device_map={device} places layers one by one, which is not implemented; name one device")
    if device is None or device == "auto":
        return torch.device("cuda" if device == "auto" and torch.cuda.is_available() else "cpu")
    return torch.device(device)
