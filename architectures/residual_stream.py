"""The residual stream taken apart: what each block, head or neuron adds to it, and what that does to the logits.

The stream is a sum: of the embeddings and of what every sublayer writes. The last norm and the unembedding are linear
once the norm's scale is fixed, so the logits are a sum as well, and each term of it can be read alone (direct logit
attribution, https://transformer-circuits.pub/2021/framework/index.html). Reading the whole stream on its way is the
logit lens (https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens).

Names and arguments are those of TransformerLens's ActivationCache. What differs: norms that were not folded into the
weights after them are multiplied in, so that attributions add up for raw models too; with folded weights nothing
differs.
"""

from typing import Any

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from nnzoo.architectures.norms import LayerNorm, NoNorm, Norm
from nnzoo.architectures.slices import SliceInput, take

Stack = Float[Tensor, "component *batch_and_pos d_model"]
Stacked = Stack | tuple[Stack, list[str]]  # with labels, if asked
Projected = Float[Tensor, "component *batch_and_out"]


class ResidualStream:
    """What an ActivationCache can say about the residual stream.

    Wherever it stands, `layer` means the stream as it enters that block; None, -1 or n_layers: as it leaves the last
    one. `mlp_input` means further on in the block, before its MLP. `pos_slice` picks positions (an int drops the axis),
    and `apply_ln` passes each component through the norm that reads the stream there, with the scale that this norm
    had in the run. `return_labels` gives a list of names as well: "embed", "0_attn_out", "L0H1", "L0N2", ...

    Weights are used detached: unless one brings a stack that requires grad, nothing here hangs on an autograd graph.
    """

    model: Any
    has_batch_dim: bool
    cache_dict: dict[str, Tensor]

    def __getitem__(self, key: Any) -> Tensor:
        raise NotImplementedError

    @property
    def _parts(self) -> tuple[str, ...]:
        """What writes into the stream, in every block."""
        return ("attn", "mlp") if self.model.has_mlps else ("attn",)

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: SliceInput = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Stacked:
        """The whole stream at every block up to `layer`; with `incl_mid` between attention and MLP too.

        For a logit lens: `apply_ln=True`, then `model.unembed`. At the end of the model every row is normed with its
        own scale, bias included; at a `layer` before that, as `apply_ln_to_stack` does it.
        """
        layer = self._layer(layer, mlp_input)
        places = []
        for i in range(layer + 1):
            places.append(("resid_pre", i, f"{i}_pre") if i < self._n_layers else ("resid_post", i - 1, "final_post"))
            if (incl_mid and self.model.has_mlps and i < layer) or (mlp_input and i == layer):
                places.append(("resid_mid", i, f"{i}_mid"))
        stack = torch.stack([take(self[name, i], pos_slice, dim=-2) for name, i, _ in places])
        if apply_ln:
            at_end = layer == self._n_layers
            stack = self.apply_ln_to_stack(stack, layer, mlp_input, pos_slice, recompute_ln=at_end)
        return (stack, [label for *_, label in places]) if return_labels else stack

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: str = "all",
        apply_ln: bool = False,
        pos_slice: SliceInput = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Stacked:
        """What was added to the stream before `layer`: embeddings, attention and MLP outputs; they sum to the stream.

        `mode` is "all", "attn" or "mlp".
        """
        if mode not in ("all", "attn", "mlp"):
            raise ValueError(f"mode is 'all', 'attn' or 'mlp', not {mode!r}")
        layer = self._layer(layer, mlp_input)
        parts = self._embeds() if incl_embeds else []
        for i in range(layer):
            parts += [(f"{i}_{part}_out", self[f"{part}_out", i]) for part in self._parts if mode in (part, "all")]
        if mlp_input and mode != "mlp":
            parts.append((f"{layer}_attn_out", self["attn_out", layer]))
        stack = self._stack([take(value, pos_slice, dim=-2) for _, value in parts], pos_slice)
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, mlp_input, pos_slice)
        return (stack, [label for label, _ in parts]) if return_labels else stack

    def logit_attrs(
        self,
        residual_stack: Stack,
        tokens: str | int | Int[Tensor, "*place"],
        incorrect_tokens: str | int | Int[Tensor, "*other_place"] | None = None,
        pos_slice: SliceInput = None,
        batch_slice: SliceInput = None,
        has_batch_dim: bool = True,
    ) -> Float[Tensor, "component *kept"]:
        """What each component adds to the logit of `tokens`, or to its difference to that of `incorrect_tokens`.

        Tokens are one for all, one for each prompt [batch], or one for each place [batch pos]. `pos_slice` says which
        positions the stack was made with; the stack itself is not cut again, but it is by `batch_slice`. Summed over
        all components of a run this is the logit less that of `ln_final`'s bias and `b_U`.
        """
        directions = self.model.tokens_to_residual_directions(tokens).detach()
        if incorrect_tokens is not None:
            wrong = self.model.tokens_to_residual_directions(incorrect_tokens).detach()
            if wrong.shape != directions.shape:
                got = f"{list(directions.shape[:-1])} and {list(wrong.shape[:-1])}"
                raise ValueError(f"tokens and incorrect_tokens are of different shapes: {got}")
            directions = directions - wrong
        stack = self.apply_ln_to_stack(residual_stack, None, False, pos_slice, batch_slice, has_batch_dim)
        if directions.ndim == 2 and stack.ndim == 4:
            directions = directions[:, None]  # one token for each prompt, not for each position
        _check_covers(directions, stack, "tokens")
        return (stack * directions).sum(dim=-1)

    def apply_ln_to_stack(
        self,
        residual_stack: Stack,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: SliceInput = None,
        batch_slice: SliceInput = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
    ) -> Float[Tensor, "component *kept d_model"]:
        """Components of the stream as the norm at `layer` passes them on, with the scale it had in the run.

        Linear: centred (LayerNorm only), divided by the scale, times the norm's weight; no bias, which belongs to no
        component. With `recompute_ln` each row is normed by itself instead, its own scale and the bias included.
        `pos_slice` says which positions the stack has; `batch_slice` is applied to it, unless `has_batch_dim` is False.
        Raises ValueError where the stack does not have the positions of the run.
        """
        layer = self._layer(layer, mlp_input)
        name, norm = self._norm(layer, mlp_input)
        if has_batch_dim and self.has_batch_dim:
            residual_stack = take(residual_stack, batch_slice, dim=1)
        if isinstance(norm, NoNorm):
            return residual_stack
        if recompute_ln:
            with torch.set_grad_enabled(residual_stack.requires_grad):
                return norm.fused(residual_stack)
        scale = take(self[f"{name}.hook_scale"], pos_slice, dim=-2)
        if self.has_batch_dim:
            scale = take(scale, batch_slice, dim=0)
        _check_covers(scale, residual_stack, f"{name}.hook_scale with this pos_slice and batch_slice")
        return _linear_part(norm, residual_stack) / scale

    def compute_head_results(self) -> None:
        """Add `attn.hook_result` [batch pos head d_model] of every block to the cache, from z and W_O."""
        for i in range(self._n_layers):
            self.cache_dict.setdefault(f"blocks.{i}.attn.hook_result", self._head_results(i, None))

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: SliceInput = None,
        apply_ln: bool = False,
    ) -> Stacked:
        """What each head below `layer` writes, without b_O; with `incl_remainder` everything else as a last row."""
        layer = self._layer(layer)
        labels = [f"L{i}H{h}" for i in range(layer) for h in range(self.model.config.n_heads)]
        heads = [head for i in range(layer) for head in self._head_results(i, pos_slice).unbind(dim=-2)]
        stack = self._stack(heads, pos_slice)
        if incl_remainder:
            stack = torch.cat([stack, (self._stream(layer, pos_slice) - stack.sum(dim=0))[None]])
            labels.append("remainder")
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, False, pos_slice)
        return (stack, labels) if return_labels else stack

    def stack_activation(
        self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None
    ) -> Float[Tensor, "layer ..."]:
        """One activation of every block below `layer`: `stack_activation("scale", sublayer_type="ln1")`."""
        return torch.stack([self[activation_name, i, sublayer_type] for i in range(self._layer(layer))])

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: SliceInput = None,
        pos_slice: SliceInput = None,
        project_output_onto: Float[Tensor, "d_model *out"] | None = None,
    ) -> Float[Tensor, "..."]:
        """What each neuron of one block writes [batch pos neuron d_model], or only its part along some directions.

        With directions [d_model] comes [batch pos neuron], with [d_model out] [batch pos neuron out].
        """
        written = take(self.model.blocks[layer].mlp.W_out.detach(), neuron_slice, dim=0)
        acts = take(take(self["post", layer], pos_slice, dim=-2), neuron_slice, dim=-1)
        return _write(acts, written, project_output_onto)

    def stack_neuron_results(
        self,
        layer: int | None,
        pos_slice: SliceInput = None,
        neuron_slice: SliceInput = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        project_output_onto: Float[Tensor, "d_model *out"] | None = None,
    ) -> Projected | tuple[Projected, list[str]]:
        """What each neuron below `layer` writes, without b_out; with `incl_remainder` everything else as a last row.

        Every neuron at every position is large: take some positions, some neurons, or the part along some directions
        ([d_model] or [d_model out]), which never writes the rest down.
        """
        layer = self._layer(layer)
        which = [neuron_slice] if isinstance(neuron_slice, int) else neuron_slice
        stack = self._neurons(layer, False, pos_slice, which, apply_ln, project_output_onto)
        numbers = take(torch.arange(self.model.config.d_mlp), which, dim=0).tolist()
        labels = [f"L{i}N{n}" for i in range(layer) for n in numbers]
        if incl_remainder:
            stream = self._stream(layer, pos_slice)[None]
            total = self._shown(stream, layer, False, pos_slice, apply_ln, project_output_onto)
            stack = torch.cat([stack, total - stack.sum(dim=0)])
            labels.append("remainder")
        return (stack, labels) if return_labels else stack

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: SliceInput = None,
        return_labels: bool = False,
        project_output_onto: Float[Tensor, "d_model *out"] | None = None,
    ) -> Projected | tuple[Projected, list[str]]:
        """The stream as heads, neurons (or MLP outputs), embeddings and one row of all biases, which sum to it."""
        layer = self._layer(layer, mlp_input)
        heads, labels = self.stack_head_results(layer + mlp_input, return_labels=True, pos_slice=pos_slice)
        embeds = self._embeds()
        bias = self.model.accumulated_bias(layer, mlp_input, include_mlp_biases=expand_neurons)
        ends = [take(value, pos_slice, dim=-2) for _, value in embeds]
        ends.append(bias.detach().expand(heads.shape[1:]))
        how = (layer, mlp_input, pos_slice, apply_ln, project_output_onto)
        if expand_neurons and self.model.has_mlps:
            mlps = self._neurons(layer, mlp_input, pos_slice, None, apply_ln, project_output_onto)
            labels += [f"L{i}N{n}" for i in range(layer) for n in range(self.model.config.d_mlp)]
        else:
            named = [f"{i}_mlp_out" for i in range(layer) if self.model.has_mlps]
            mlps = self._stack([take(self["mlp_out", i], pos_slice, dim=-2) for i in range(len(named))], pos_slice)
            mlps = self._shown(mlps, *how)
            labels += named
        stack = torch.cat([self._shown(heads, *how), mlps, self._shown(torch.stack(ends), *how)])
        return (stack, [*labels, *(label for label, _ in embeds), "bias"]) if return_labels else stack

    def _layer(self, layer: int | None, mlp_input: bool = False) -> int:
        n = self._n_layers
        layer = n if layer is None or layer == -1 else layer
        if not 0 <= layer <= n - mlp_input:
            where = f"mlp_input needs a block: layer is 0 to {n - 1}" if mlp_input else f"layer is 0 to {n}"
            raise ValueError(f"{where} (or None or -1, for {n}: the end of the last block), not {layer}")
        return layer

    @property
    def _n_layers(self) -> int:
        return self.model.config.n_layers

    def _norm(self, layer: int, mlp_input: bool) -> tuple[str, Any]:
        if layer == self._n_layers:
            return "ln_final", self.model.ln_final
        name = "ln2" if mlp_input else "ln1"
        return f"blocks.{layer}.{name}", getattr(self.model.blocks[layer], name)

    def _stream(self, layer: int, pos_slice: SliceInput) -> Tensor:
        return take(self["resid_post", layer - 1] if layer else self["resid_pre", 0], pos_slice, dim=-2)

    def _embeds(self) -> list[tuple[str, Tensor]]:
        names = ("embed", "pos_embed") if self.model.adds_positions else ("embed",)
        return [(name, self[name]) for name in names]

    def _head_results(self, layer: int, pos_slice: SliceInput) -> Float[Tensor, "*batch_and_pos head d_model"]:
        name = f"blocks.{layer}.attn.hook_result"
        if name in self.cache_dict:
            return take(self.cache_dict[name], pos_slice, dim=-3)
        z = take(self["z", layer], pos_slice, dim=-3)
        return einsum(z, self.model.blocks[layer].attn.W_O.detach(), "... h d_head, h d_head d -> ... h d")

    def _neurons(
        self, layer: int, mlp_input: bool, pos_slice: SliceInput, which: SliceInput, apply_ln: bool, onto: Tensor | None
    ) -> Projected:
        name, norm = self._norm(layer, mlp_input)
        apply_ln = apply_ln and not isinstance(norm, NoNorm)
        scale = take(self[f"{name}.hook_scale"], pos_slice, dim=-2) if apply_ln else 1
        stacks = [self._shown(self._stack([], pos_slice), layer, mlp_input, pos_slice, False, onto)]
        for i in range(layer):
            written = take(self.model.blocks[i].mlp.W_out.detach(), which, dim=0)
            acts = take(take(self["post", i], pos_slice, dim=-2), which, dim=-1)
            rows = _write(acts / scale, _linear_part(norm, written) if apply_ln else written, onto)
            stacks.append(rows.movedim(acts.ndim - 1, 0))
        return torch.cat(stacks)

    def _stack(self, values: list[Tensor], pos_slice: SliceInput) -> Stack:
        if values:
            return torch.stack(values)
        like = take(self["embed"], pos_slice, dim=-2)
        return like.new_empty(0, *like.shape)

    def _shown(
        self, stack: Stack, layer: int, mlp_input: bool, pos_slice: SliceInput, apply_ln: bool, onto: Tensor | None
    ) -> Projected:
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, mlp_input, pos_slice)
        return stack if onto is None else stack @ onto


def _linear_part(norm: Norm, x: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
    """What a norm does apart from dividing by its scale and adding its bias."""
    centred = x - x.mean(dim=-1, keepdim=True) if isinstance(norm, LayerNorm) else x
    return centred * norm.weight.detach()


def _write(acts: Tensor, written: Tensor, onto: Tensor | None) -> Tensor:
    """Each neuron's activation [... neuron] times what it writes [neuron d_model], or its part along directions."""
    if onto is None:
        return acts[..., None] * written
    written = written @ onto
    return acts * written if onto.ndim == 1 else acts[..., None] * written


def _check_covers(part: Tensor, stack: Stack, what: str) -> None:
    """Raise ValueError unless `part` [*batch_and_pos x] broadcasts to the stack's axes, without adding any."""
    if part.shape[:-1] == stack.shape[:-1]:
        return  # one component by itself, without the axis of components
    ours, its = part.shape[:-1], stack.shape[1:-1]
    if len(ours) > len(its) or any(a not in (1, b) for a, b in zip(reversed(ours), reversed(its), strict=False)):
        raise ValueError(f"the stack has [*batch_and_pos] = {list(its)}, but {what} {list(ours)}")
