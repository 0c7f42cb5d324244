"""What only a whole model can do: move to a device, change its dtype, say that it trains."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.envoys.envoy import Envoy
from nnzoo.envoys.names import VALUES, nearest
from nnzoo.tracing.recorder import TraceError
from nnzoo.weights.config import family_of
from nnzoo.weights.described import training_dropout
from nnzoo.weights.devices import usable

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Generator:
    """What a generation gave, by nnsight's name: `model.generator.output` is `tracer.result`."""

    def __init__(self, root: "WholeModel") -> None:
        self._root = root

    @property
    def output(self) -> Any:
        """The ids of the running trace's generation, the prompt's among them."""
        return self._root.tracer.result

    def __repr__(self) -> str:
        return "Generator()  # its .output is tracer.result"


@dataclass
class Weights:
    """The native model, once it is read, and as what: shared by a model and its copies."""

    device: torch.device
    dtype: torch.dtype | str | None
    native: HookedModel | None = None


class WholeModel(Envoy):
    """The root of the tree: a mixin of LanguageModel, with what `nn.Module` and transformers offer at a model."""

    _attached: dict[str, nn.Module]
    _weights: "Weights"
    _skeleton: HookedModel
    _settings: Any
    order: dict[str, int]  # of each hook point, when it fires
    lock: Any
    tracer: Any
    _tracer: Any

    def __init__(self) -> None:
        self._path, self._layer = "", None

    @property
    def _root(self) -> Any:  # type: ignore[override]  # a property, so that a copy of a model is its own root
        return self

    @property
    def _model(self) -> HookedModel:
        raise NotImplementedError

    @property
    def _native(self) -> HookedModel | None:
        return self._weights.native

    @property
    def skeleton(self) -> HookedModel:
        """The model without weights: names, shapes and dtypes as a pass has them, known before any weight is read."""
        dtype = self.dtype
        if self._skeleton.dtype != dtype:  # somebody converted the native model by itself
            self._skeleton.to(dtype)
        return self._skeleton

    @property
    def device(self) -> torch.device:
        """Where the model is, or will be when its weights are read."""
        return self._place_and_kind[0]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, or the one in which they will be read."""
        return self._place_and_kind[1]

    @property
    def _place_and_kind(self) -> tuple[torch.device, torch.dtype]:
        native = self._weights.native
        if native is None:
            return self._weights.device, self._skeleton.dtype
        weight = native.embed.weight
        return weight.device, weight.dtype

    @property
    def config(self) -> Any:
        """What the checkpoint decides: `n_layers`, or by Hugging Face's name `num_hidden_layers`. It is frozen."""
        return self._skeleton.config

    @property
    def generator(self) -> Generator:
        """The result of a generation by nnsight's name: `model.generator.output`."""
        return Generator(self)

    # --- moving --------------------------------------------------------------------------------------------------

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move the model, your own modules in it too, to a device or dtype, or both; gives the model itself.

        Weights that were not read yet are read there. Raises TypeError for a dtype that models do not run in,
        TraceError inside a trace, whose body knows one dtype and one device.
        """
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is not None and dtype not in DTYPES:
            raise TypeError(f"{dtype} is none that models run in; those are {', '.join(map(str, DTYPES))}")
        if self._tracer.get() is not None:
            raise TraceError("the model cannot be moved inside a trace; move it before")
        with self.lock:
            weights = self._weights
            weights.device = weights.device if device is None else usable(device)
            weights.dtype = weights.dtype if dtype is None else dtype
            self._skeleton.to(dtype=dtype)
            for module in (*filter(None, [weights.native]), *self._attached.values()):
                module.to(*args, **kwargs)
        return self

    def half(self) -> Any:
        """To float16, in place."""
        return self.to(torch.float16)

    def bfloat16(self) -> Any:
        """To bfloat16, in place."""
        return self.to(torch.bfloat16)

    def float(self) -> Any:
        """To float32, in place."""
        return self.to(torch.float32)

    def double(self) -> Any:
        """To float64, in place."""
        return self.to(torch.float64)

    def cpu(self) -> Any:
        """To the CPU, in place."""
        return self.to("cpu")

    def cuda(self, device: int | torch.device | None = None) -> Any:
        """To a GPU, the first unless another is named, in place."""
        return self.to(
            "cuda" if device is None else torch.device("cuda", device) if isinstance(device, int) else device
        )

    # --- training ------------------------------------------------------------------------------------------------

    @property
    def training(self) -> bool:
        """Whether `train()` was called last; it makes no difference to the model, which has no dropout."""
        return self._native is not None and self._native.training

    def eval(self) -> Any:
        """As the model is from the start; your own modules in it are told. Gives the model itself."""
        return self._set_training(False)

    def train(self, mode: bool = True) -> Any:
        """Say that the model trains. It computes what it always computes: gradients need nobody's leave.

        Raises NotImplementedError for a checkpoint that transformers would train with dropout, which is not there.
        """
        dropout = training_dropout(family_of(self.config).name, self._settings)
        if mode and dropout:
            named = ", ".join(f"{name}={p}" for name, p in dropout.items())
            raise NotImplementedError(
                f"transformers trains this checkpoint with dropout ({named}), and nnzoo has none. Without dropout: "
                "train as it is, in eval(); parameters have gradients there too"
            )
        return self._set_training(mode)

    def _set_training(self, mode: bool) -> Any:
        for module in (*([self._model] if mode else filter(None, [self._native])), *self._attached.values()):
            module.train(mode)
        return self

    def _set_other(self, name: str, value: Any) -> None:
        near = [] if name in vars(self) else nearest(name, [*VALUES], cutoff=0.75)
        if near:
            raise AttributeError(f"the model has no {name!r} to set; did you mean .{' or .'.join(near)}?")
        object.__setattr__(self, name, value)
