"""The immediate API of every model: run it, with hooks or a cache, on ids or text.

The names and arguments are those of TransformerLens's HookedTransformer. A model file adds the equations: `begin`,
`blocks`, `finish`, and `forward`, which calls them.
"""

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nnzoo.architectures.activation_cache import ActivationCache, Recorder, compact
from nnzoo.architectures.attention import Span
from nnzoo.architectures.hooks import Handle, HookFunction, HookPoint, named_hook_points, pairs_of
from nnzoo.architectures.kv_cache import KVCache
from nnzoo.architectures.modules import Module
from nnzoo.architectures.products import linear
from nnzoo.architectures.slices import SliceInput
from nnzoo.architectures.text import TextMethods
from nnzoo.architectures.weight_views import WeightViews

NamesFilter = str | re.Pattern | Iterable[str | re.Pattern] | Callable[[str], bool] | None
Hooks = Sequence[tuple[NamesFilter, HookFunction]]


class Unembed(Module):
    """From the residual stream to logits: x W_U."""

    bias: nn.Parameter | None

    def __init__(self, d_model: int, d_vocab: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_vocab, d_model))
        self.register_parameter("bias", None)  # weight processing adds one
        nn.init.normal_(self.weight, std=0.02)
        self.hook_in = HookPoint("batch pos d_model")
        self.hook_out = HookPoint("batch pos d_vocab")

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        return self.hook_out(linear(self.hook_in(x), self.weight, self.bias))

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        return self.weight.t()

    @property
    def b_U(self) -> Float[Tensor, "d_vocab"]:
        return self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias


class HookedModel(WeightViews, TextMethods, nn.Module):
    """A language model whose every intermediate value has a name."""

    hook_points: dict[str, HookPoint]
    origin: Any = None  # what the checkpoint says beside the equations, for whoever loads and saves it
    ln_final: Any  # the last norm
    window: int | None = None  # how many tokens back a query sees, itself included; None: all

    def setup(self) -> None:
        """Name the hook points; the last line of a model's `__init__`."""
        if self.config.tied:
            self.unembed.weight = self.embed.weight
        for module in self.modules():
            # Module.__getattr__ takes 0.5 us to find a submodule, an attribute 0.04: a tenth of a pass over one token
            vars(module).update(module._modules)
        self.hook_points = dict(named_hook_points(self))
        for name, point in self.hook_points.items():
            point.name, point.sizes = name, self.axis_sizes

    @property
    def cfg(self) -> Any:
        """The config, by TransformerLens's name."""
        return self.config

    @property
    def axis_sizes(self) -> dict[str, int]:
        """The axes of hook points that the config decides: {"d_model": 768, "head": 12, ...}."""
        c = self.config
        return {
            "d_model": c.d_model,
            "3*d_model": 3 * c.d_model,
            "head": c.n_heads,
            "kv_head": c.n_kv_heads,
            "d_head": c.d_head,
            "d_mlp": c.d_mlp,
            "d_vocab": c.d_vocab,
        }

    @property
    def adds_positions(self) -> bool:
        """Whether the residual stream begins with a position's vector beside that of the token."""
        return "hook_pos_embed" in self.hook_points

    @property
    def max_tokens(self) -> int:
        """How many tokens a prompt and what follows it may have."""
        return self.config.n_ctx

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.weight.dtype

    def __call__(
        self,
        input: str | list[str] | Tensor,
        *,
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool = False,
        attention_mask: Int[Tensor, "*batch pos"] | Bool[Tensor, "*batch pos"] | None = None,
        cache: KVCache | None = None,
        stop_at_layer: int | None = None,
        start_at_layer: int | None = None,
        tokens: Int[Tensor, "batch pos"] | None = None,
    ) -> Any:
        """Run the model on text or ids [batch pos] (or [pos]).

        `return_type` is "logits" [batch pos d_vocab], "loss" (the mean cross-entropy of each next token, padding left
        out; [batch pos-1] with `loss_per_token`), "both" (logits and loss) or None. With `stop_at_layer` comes back
        the residual stream [batch pos d_model] as it enters that block; negative counts from the end, `n_layers` is
        what leaves the last one. `attention_mask` is True or 1 at tokens, 0 at padding (either side); text is padded
        on the left, after the beginning-of-text token if `prepend_bos`.
        With a `cache`, the input follows what the cache has read.
        With `start_at_layer` the input is the residual stream [batch pos d_model] as it enters that block, and nothing
        before it runs; a loss needs the `tokens` as well.
        """
        if return_type not in ("logits", "loss", "both", None):
            raise ValueError(f"return_type is 'logits', 'loss', 'both' or None, not {return_type!r}")
        if start_at_layer is not None:
            start_at_layer = self._block_index(start_at_layer, "start_at_layer")
            input = self._checked_residual(input, cache, prepend_bos)
        else:
            if tokens is not None:
                raise ValueError("tokens= goes with a residual stream and start_at_layer; here the input has them")
            input, attention_mask = self.tokens_and_mask(input, attention_mask, prepend_bos=prepend_bos)
            tokens = input
        if stop_at_layer is not None:
            stop_at_layer = self._block_index(stop_at_layer, "stop_at_layer")
        out = super().__call__(input, attention_mask, cache, stop_at_layer, start_at_layer)
        if stop_at_layer is not None or return_type == "logits":
            return out
        if return_type is None:
            return None
        if tokens is None:
            raise ValueError("a loss is that of tokens, and the input is a residual stream: pass tokens= too")
        loss = self.loss(out, tokens, attention_mask, per_token=loss_per_token)
        return loss if return_type == "loss" else (out, loss)

    def begin(
        self,
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Bool[Tensor, "batch pos"] | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Float[Tensor, "batch pos d_model"], Span]:
        """The residual stream as it enters the first block, and what the blocks need to know of the tokens."""
        raise NotImplementedError

    def span(
        self, tokens: Int[Tensor, "batch pos"], attention_mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Span:
        """What the blocks need to know of the tokens: where each stands, and what it may look at."""
        raise NotImplementedError

    def begin_inside(
        self,
        x: Float[Tensor, "batch pos d_model"],
        attention_mask: Bool[Tensor, "batch pos"] | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Float[Tensor, "batch pos d_model"], Span]:
        """As `begin`, for a residual stream that enters any block."""
        return x, self.span(x.new_zeros(x.shape[:2], dtype=torch.long), attention_mask, cache)

    def finish(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits from the residual stream as it leaves the last block."""
        raise NotImplementedError

    def new_cache(self) -> KVCache:
        """An empty KV cache, to be passed as `cache=` with each part of a text."""
        return KVCache(len(self.blocks))

    def loss(
        self,
        logits: Float[Tensor, "batch pos d_vocab"],
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Bool[Tensor, "batch pos"] | None = None,
        *,
        per_token: bool = False,
    ) -> Float[Tensor, "*loss"]:
        """Cross-entropy of each next token in nats: its mean, or [batch pos-1]; 0 per token where one is padding."""
        losses = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
        if attention_mask is None:
            return losses if per_token else losses.mean()
        counted = attention_mask[:, 1:].bool() & attention_mask[:, :-1].bool()
        losses = losses.masked_fill(~counted, 0)
        return losses if per_token else losses.sum() / counted.sum()

    # --- hooks -------------------------------------------------------------------------------------------------

    def select(self, names: NamesFilter) -> list[HookPoint]:
        """The hook points that a filter names: a name, a glob ("blocks.*.hook_resid_post"), a compiled regular
        expression, several of these, or a function of the name; None: those that a cache holds by default.

        Raises KeyError, with the nearest names, where nothing matches.
        """
        if names is None:
            return [point for point in self.hook_points.values() if not point.on_request]
        if callable(names):
            found = [point for name, point in self.hook_points.items() if names(name)]
            if not found:
                raise KeyError(f"the filter {names!r} accepts none of the model's {len(self.hook_points)} hook points")
            return found
        if isinstance(names, (str, re.Pattern)):
            return self._matching(names)
        named = {point.name: point for name in names for point in self._matching(name)}
        if not named:
            raise KeyError("the filter names no hook point: it is empty")
        return list(named.values())

    def _matching(self, name: str | re.Pattern) -> list[HookPoint]:
        if isinstance(name, str) and name in self.hook_points:
            return [self.hook_points[name]]
        pattern = re.compile(fnmatch.translate(name)) if isinstance(name, str) else name
        found = [point for full, point in self.hook_points.items() if pattern.fullmatch(full)]
        if not found:
            asked = name if isinstance(name, str) else name.pattern
            near = difflib.get_close_matches(asked, self.hook_points, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else "; model.hook_points lists them"
            raise KeyError(f"no hook point matches {asked!r}{hint}")
        return found

    def add_hook(
        self,
        name: NamesFilter,
        fn: HookFunction,
        dir: str = "fwd",
        *,
        is_permanent: bool = False,
        prepend: bool = False,
    ) -> list[Handle]:
        """Listen at hook points until `reset_hooks` (never, if permanent). `dir` is "fwd" or "bwd"."""
        points = self.select(name)
        if dir == "bwd" and len(points) > 1:
            points = [point for point in points if point.axes != "batch pos"]  # ids and positions have no gradient
        return [point.add_hook(fn, dir, is_permanent=is_permanent, prepend=prepend) for point in points]

    def reset_hooks(self, *, including_permanent: bool = False) -> None:
        """Remove every hook, permanent ones only if asked."""
        for point in self.hook_points.values():
            point.hooks[:] = [] if including_permanent else [hook for hook in point.hooks if hook.permanent]

    @contextmanager
    def hooks(self, fwd_hooks: Hooks = (), bwd_hooks: Hooks = ()) -> Iterator["HookedModel"]:
        """Listen inside the `with`, and only there, whatever happens in it."""
        handles: list[Handle] = []
        try:
            for name, fn in pairs_of(fwd_hooks, "fwd_hooks"):
                handles += self.add_hook(name, fn)
            for name, fn in pairs_of(bwd_hooks, "bwd_hooks"):
                handles += self.add_hook(name, fn, dir="bwd")
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def run_with_hooks(
        self, input: str | list[str] | Tensor, *, fwd_hooks: Hooks = (), bwd_hooks: Hooks = (), **kwargs: Any
    ) -> Any:
        """Run once with `[(name, fn), ...]` listening; fn(value, hook) returns a replacement or None.

        Backward hooks stay on this run's values, for the backward pass that follows; on the model nothing stays.
        """
        with self.hooks(fwd_hooks, bwd_hooks):
            return self(input, **kwargs)

    def run_with_cache(
        self,
        input: str | list[str] | Tensor,
        *,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        pos_slice: SliceInput = None,
        **kwargs: Any,
    ) -> tuple[Any, ActivationCache]:
        """Run, and keep what passes the hook points that `names_filter` selects.

        Without a filter: all but the few that are marked `on_request`, whose values are n_heads times the residual
        stream. With `incl_bwd` the output (a scalar: return_type="loss") is differentiated, and "NAME_grad" holds
        the gradient at NAME. `pos_slice` keeps some positions only: -1, (0, 5), [2, 4]; the axis stays. Hooks that edit
        run first: the cache holds what the model went on with.
        """
        recorder = Recorder(device, pos_slice)
        try:
            for point in self.select(names_filter):
                recorder.listen(point, gradients=incl_bwd)
            out = self(input, **kwargs)
            if incl_bwd:
                out.backward()
        finally:
            recorder.stop()
        # without a filter what shares a storage is kept together, and there is nothing to let go of
        values = recorder.values() if names_filter is None else compact(recorder.values())
        cache = ActivationCache(values, self)
        return out, cache.remove_batch_dim() if remove_batch_dim else cache

    def _block_index(self, layer: int, argument: str) -> int:
        n = len(self.blocks)
        if not -n <= layer <= n:
            raise ValueError(f"{argument}={layer}, but the model has {n} blocks (0 to {n})")
        return layer % n if layer < 0 else layer

    def _checked_residual(self, x: Any, cache: KVCache | None, prepend_bos: bool) -> Tensor:
        if cache is not None or prepend_bos:
            raise ValueError("start_at_layer takes a residual stream as it is: no cache= and no prepend_bos")
        d_model = self.config.d_model
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim != 3 or x.shape[-1] != d_model:
            got = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"with start_at_layer the input is a residual stream [batch pos {d_model}], not {got}")
        return x
