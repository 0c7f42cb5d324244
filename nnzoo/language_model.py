"""LanguageModel: a model by Hugging Face's paths, driven by traces."""

import inspect
from collections.abc import Mapping
from contextvars import ContextVar
from copy import copy, deepcopy
from pathlib import Path
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from nnzoo import arguments
from nnzoo.architectures.hooked_model import HookedModel, Hooks
from nnzoo.envoys.aliases import Rename, bind
from nnzoo.envoys.answers import answer
from nnzoo.envoys.attached import Seen
from nnzoo.envoys.tree import build_tree
from nnzoo.envoys.whole import Weights
from nnzoo.hook_table import HookTable, hook_table
from nnzoo.prompts import Prompt
from nnzoo.tracing.edits import Edit
from nnzoo.tracing.saving import mount
from nnzoo.tracing.session import Session
from nnzoo.tracing.shapes import firing_order
from nnzoo.tracing.traced import TracedModel
from nnzoo.tracing.tracer import Tracer
from nnzoo.weights.checkpoint import open_checkpoint
from nnzoo.weights.config import skeleton
from nnzoo.weights.hf_names import with_hf_names
from nnzoo.weights.paths import paths_of
from nnzoo.weights.saving import save

NATIVE = {"return_type", "loss_per_token", "cache", "stop_at_layer"}  # what a run of the model takes beside its prompt
OF_A_PROCESS = {"lock", "_watched", "_tracer", "_session", "_facts"}  # what a pickle has not


class LanguageModel(TracedModel):
    """A language model from a Hugging Face folder or id, or an embedded one: "nnzoo/tiny-gpt2".

    Config and tokenizer are found at once, weights are read at the first run (at once with `dispatch=True`).
    `dtype` (or `torch_dtype`) converts the weights, `device` (or `device_map`) places them. `block_output="tensor"`
    lets a decoder block's `.output` be the bare tensor, as newer transformers have it, instead of a tuple `(hidden,)`.
    `rename={"transformer.h": "layers", "mlp": "feedforward"}` gives modules further names. `tokenizer` takes the place
    of the checkpoint's, `tokenizer_kwargs` are attributes for it.

    What makes no difference here is accepted: `attn_implementation` "eager", "sdpa" or "flash_attention_2",
    `low_cpu_mem_usage`, `use_safetensors=True`, `trust_remote_code=False`, `task="text-generation"`. What would make
    one is refused by name with TypeError.

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
        device_map: str | torch.device | dict | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        block_output: str = "tuple",
        rename: Rename | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool | None = None,
        tokenizer: Any = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        dispatch: bool = False,
        **others: Any,
    ) -> None:
        super().__init__()
        arguments.check(others, [*inspect.signature(LanguageModel).parameters][1:-1])
        arguments.check_path(path_or_id)
        if block_output not in ("tuple", "tensor"):
            raise ValueError(f'block_output is "tuple" or "tensor", not {block_output!r}')
        self.block_output = block_output
        self._weights = Weights(
            device=arguments.device_of(arguments.either(device=device, device_map=device_map)),
            dtype=arguments.either(dtype=dtype, torch_dtype=torch_dtype),
        )
        self._checkpoint = open_checkpoint(
            path_or_id, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
        )
        self._settings = self._checkpoint.origin.settings
        config = with_hf_names(self._checkpoint.config, self._settings)
        self._skeleton = skeleton(config).to(self._checkpoint.dtype(self._weights.dtype))  # names, shapes; no weights
        self.order = {name: i for i, name in enumerate(firing_order(self._skeleton))}
        self.paths = paths_of(config)
        self._attached: dict[str, nn.Module] = {}  # the user's own modules, by their paths
        self._node = build_tree(self._skeleton, self.order)
        bind(self, rename)
        self._tokenizer_kwargs = arguments.settings_of_tokenizer(tokenizer_kwargs)
        self._tokenizer: Any = None
        if tokenizer is not None:
            self.tokenizer = tokenizer
        self.edits: tuple[Edit, ...] = ()  # what every trace of this model does first
        mount()
        self._begin()
        if dispatch:
            self.dispatch()

    def _begin(self) -> None:
        """No trace of this model is running."""
        self.lock = RLock()  # one pass at a time: hook points are the model's, not a thread's
        self._watched: WeakKeyDictionary[Tracer, dict[nn.Module, list[Seen]]] = WeakKeyDictionary()
        self._tracer: ContextVar[Tracer | None] = ContextVar("tracer", default=None)
        self._session: ContextVar[Session | None] = ContextVar("session", default=None)

    # --- the model -----------------------------------------------------------------------------------------------

    @property
    def _model(self) -> HookedModel:
        """The native model, with weights and the immediate API."""
        with self.lock:
            weights = self._weights
            if weights.native is None:
                weights.native = self._checkpoint.load(dtype=weights.dtype, device=weights.device)
        return weights.native

    def dispatch(self) -> "LanguageModel":
        """Read the weights now, if they were not yet; gives the model itself."""
        _ = self._model
        return self

    @property
    def dispatched(self) -> bool:
        """Whether the weights have been read."""
        return self._native is not None

    @property
    def repo_id(self) -> str:
        """The name of the checkpoint: its id, or its folder."""
        return self._checkpoint.name

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer, which pads on the left; transformers is imported when it is first asked for.

        Raises ValueError where the checkpoint has none.
        """
        if self._tokenizer is None:
            if self._checkpoint.tokenizer is None:
                raise ValueError(f"{self._checkpoint.name} has no tokenizer: pass token ids, or set model.tokenizer")
            self.tokenizer = self._checkpoint.tokenizer()
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        if isinstance(tokenizer, (str, Path)):
            raise TypeError(
                f"a tokenizer is an object, not a name; weights.load_tokenizer({tokenizer!r}) reads a folder's"
            )
        arguments.set_up(tokenizer, self._tokenizer_kwargs)
        self._tokenizer = tokenizer

    # --- copies --------------------------------------------------------------------------------------------------

    def __copy__(self) -> "LanguageModel":
        """A model that shares the weights, and the lock: passes of both come one after the other."""
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> "LanguageModel":
        """A model with weights of its own, and copies of the modules that were put into it; edits use the copies."""
        other = copy(self)
        memo[id(self)] = other
        memo.update({id(one): one for edit in self.edits for one in edit.constants if not one.is_leaf})
        for name in ("_weights", "_attached", "_skeleton", "_tokenizer", "edits"):
            setattr(other, name, deepcopy(getattr(self, name), memo))
        other._begin()
        return other

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: settings, edits, your own modules, and the weights if they have been read.

        Those that have not are read where it is unpickled, from the same folder or the same commit of the Hub. A token
        of the Hub is left out: log in there, or set HF_TOKEN.
        """
        return {name: value for name, value in vars(self).items() if name not in OF_A_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        mount()
        self._begin()

    def hook_table(self, layer: int | None = None) -> HookTable:
        """Every hook point with its shape and its path in a trace; those of blocks once, or those of one block.

        >>> table = LanguageModel("nnzoo/tiny-llama").hook_table(layer=0)
        >>> [row.numbers for row in table if row.name.endswith("hook_k")]
        ['[batch, pos, 2, 32]']
        """
        return hook_table(self._skeleton, layer)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as a Hugging Face folder, which transformers and nnzoo load; your own modules stay out."""
        save(self._model, folder)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model: logits [batch pos d_vocab], a tensor that also answers `.logits`, and `.loss`.

        The prompt is as for `trace`. `.loss` is the mean cross-entropy in nats of `labels` [batch pos], each against
        the logits of the position before; -100 is left out; None without labels. `return_type`, `loss_per_token`,
        `cache` and `stop_at_layer` are the native model's.

        >>> model = LanguageModel("nnzoo/tiny-gpt2")
        >>> tokens = model._model.to_tokens("The capital of France is")
        >>> model(tokens, labels=tokens).loss.ndim
        0
        """
        options = {name: kwargs.pop(name) for name in NATIVE & kwargs.keys()}
        prompt = self.prepare(*args, **kwargs)
        if self.edits:
            return self._edited(prompt, options)
        if options.get("return_type", "logits") in ("loss", "both") and prompt.embeds is not None:
            raise ValueError("inputs_embeds are no tokens that could be predicted: the loss is of labels=")
        if options and prompt.labels is not None:
            raise ValueError(f"labels ask for logits and their .loss, and take no {' or '.join(sorted(options))}")
        hooks: Hooks = [] if prompt.embeds is None else [("hook_embed", lambda value, hook: prompt.embeds)]
        with self.lock:
            out = self._model.run_with_hooks(
                prompt.tokens, fwd_hooks=hooks, attention_mask=prompt.attention_mask, **options
            )
        is_logits = options.get("return_type", "logits") == "logits" and options.get("stop_at_layer") is None
        return answer(out, prompt.labels) if is_logits else out

    def _edited(self, prompt: Prompt, options: dict[str, Any]) -> Any:
        if options:
            raise ValueError(
                f"{', '.join(sorted(options))}: the native model's options know nothing of edits. Without its edits it "
                "is model._model(...); clear_edits() takes them away"
            )
        with Tracer(self, prompt, grad=torch.is_grad_enabled()) as tracer:
            logits = tracer.result
        return answer(logits, prompt.labels)
