"""`generate` with TransformerLens's arguments; the loop and the KV cache are nnzoo's."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from nnzoo.architectures.hooked_model import HookedModel
from nnzoo.generation.decoder import Decoder
from nnzoo.generation.options import Options
from nnzoo.generation.recorded import recorded
from nnzoo.generation.steps import next_logits
from nnzoo.transformer_lens.sampling import sample_logits
from nnzoo.transformer_lens.tensors import get_attention_mask
from nnzoo.transformer_lens.tokenizing import Tokenizing


class LensDecoder(Decoder):
    """nnzoo's decoder, which draws as TransformerLens does, and keeps the logits of each step."""

    def __init__(
        self, options: Options, tokens: Int[Tensor, "batch pos"], mask: Tensor | None, sampling: dict[str, Any] | None
    ) -> None:
        super().__init__(options, tokens, mask)
        self.sampling = sampling  # None: the most likely token
        self.logits: list[Float[Tensor, "batch d_vocab"]] = []

    def _pick(self, logits: Float[Tensor, "batch d_vocab"]) -> Int[Tensor, "batch"]:
        self.logits.append(logits)
        return (
            super()._pick(logits) if self.sampling is None else sample_logits(logits, **self.sampling, tokens=self.ids)
        )


def steps(model: HookedModel, decoder: LensDecoder, cached: bool) -> Iterator[Int[Tensor, "batch"]]:
    """Each step's tokens; without a cache every step reads the whole text again, and hooks see all of it."""
    cache, tokens, mask, start = model.new_cache(), decoder.tokens, decoder.attention_mask, decoder.tokens.shape[1]
    replayed = recorded(model, cache, decoder.options.max_new_tokens)
    follow = next_logits if replayed is None else replayed.next_logits
    while not decoder.done:
        if cached:
            new = decoder.choose(follow(model, tokens, mask, cache))
            tokens, mask = new[:, None], None
        else:
            seen = None if mask is None else pad(mask, (0, decoder.ids.shape[1] - start), value=True)
            new = decoder.choose(model(decoder.ids, attention_mask=seen)[:, -1])
        yield new


class Generating(Tokenizing):
    """Generation of a HookedTransformer."""

    @torch.no_grad()
    def generate(
        self,
        input: str | list[str] | Int[Tensor, "batch pos"] = "",
        max_new_tokens: int = 10,
        stop_at_eos: bool = True,
        eos_token_id: int | Sequence[int] | None = None,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | int | None = None,
        temperature: float | int = 1.0,
        freq_penalty: float | int = 0.0,
        use_past_kv_cache: bool = True,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        return_type: str | None = "input",
        verbose: bool = True,
        **generation_kwargs: Any,
    ) -> Any:
        """The prompt and what follows: text for text, ids for ids, unless `return_type` is "str", "tokens" or "embeds".

        Tokens are drawn from all of the distribution, unless `do_sample` is False, `temperature` 0, or `top_k` or
        `top_p` narrow it. A row ends at `eos_token_id`, by default the tokenizer's. With `use_past_kv_cache=False`
        every step runs the whole text, so that hooks see all positions. `output_logits=True` gives transformers'
        output object, with the logits of each step.

        >>> from nnzoo.transformer_lens import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("nnzoo/tiny-gpt2")
        >>> model.generate("The capital of France is", max_new_tokens=1, temperature=0, verbose=False)
        'The capital of France is Paris'
        """
        return_type = self._checked_return_type(input, return_type)
        sampling = {"top_k": top_k, "top_p": top_p, "temperature": temperature, "freq_penalty": freq_penalty}
        ends = self._ends_of(eos_token_id) if stop_at_eos else {}
        prompt = self._prompt(input, prepend_bos, padding_side)
        decoder = _decoder(prompt, max_new_tokens, ends, sampling if do_sample else None)
        wants_logits = self._wants_logits(generation_kwargs)
        for _ in self._steps(decoder, use_past_kv_cache, verbose):
            if not wants_logits:
                decoder.logits.clear()
        return self._with_logits(decoder) if wants_logits else self._answer(decoder.ids, return_type)

    @torch.no_grad()
    def generate_stream(
        self,
        input: str | Int[Tensor, "batch pos"] = "",
        max_new_tokens: int = 10,
        max_tokens_per_yield: int = 25,
        stop_at_eos: bool = True,
        eos_token_id: int | Sequence[int] | None = None,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | int | None = None,
        temperature: float | int = 1.0,
        freq_penalty: float | int = 0.0,
        use_past_kv_cache: bool = True,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        return_type: str | None = "input",
        verbose: bool = True,
    ) -> Iterator[Int[Tensor, "batch new"]]:
        """What `generate` gives, in pieces of ids [batch new]: the first has the prompt in front."""
        sampling = {"top_k": top_k, "top_p": top_p, "temperature": temperature, "freq_penalty": freq_penalty}
        ends = self._ends_of(eos_token_id) if stop_at_eos else {}
        prompt, given = self._prompt(input, prepend_bos, padding_side), 0
        decoder = _decoder(prompt, max_new_tokens, ends, sampling if do_sample else None)
        for _ in self._steps(decoder, use_past_kv_cache, verbose):
            if decoder.ids.shape[1] - given >= max_tokens_per_yield:
                yield decoder.ids[:, given:]
                given = decoder.ids.shape[1]
        if decoder.ids.shape[1] > given:
            yield decoder.ids[:, given:]

    def _checked_return_type(self, input: Any, return_type: str | None) -> str:
        if isinstance(input, Tensor) and input.is_floating_point():
            raise NotImplementedError("generate reads text or ids; what embeddings give, run_with_hooks shows")
        if return_type not in ("input", "str", "tokens", "embeds"):
            raise AssertionError(f"return_type is 'input', 'str', 'tokens' or 'embeds', not {return_type!r}")
        if return_type != "input":
            return str(return_type)
        return "tokens" if isinstance(input, Tensor) else "str"

    def _prompt(self, input: Any, prepend_bos: bool | None, side: str | None) -> tuple[Tensor, Tensor | None]:
        """Ids padded on the left, as continuing them needs it; padding in ids is found as TransformerLens finds it."""
        if isinstance(input, (str, list)):
            rows = self._rows([input] if isinstance(input, str) else input, prepend_bos, truncate=True)
            tokens = self._padded(rows, "left").to(self.native.device)
            lengths = torch.tensor([len(row) for row in rows], device=tokens.device)
            mask = torch.arange(tokens.shape[1], device=tokens.device) >= tokens.shape[1] - lengths[:, None]
        else:
            tokens = (input[None] if input.ndim == 1 else input).to(self.native.device)
            if not self._tokenizer_settled:
                return tokens, None
            found = get_attention_mask(self.native.tokenizer, tokens, self._prepends(prepend_bos), side).bool()
            mask = found | ~found.any(dim=1, keepdim=True)  # a prompt of nothing but such tokens is no padding
        return tokens, None if mask.all() else mask

    def _ends_of(self, eos_token_id: int | Sequence[int] | None) -> dict[str, Any]:
        own = None if self.tokenizer is None else self.tokenizer.eos_token_id
        given = own if eos_token_id is None else eos_token_id
        if given is None:
            raise AssertionError("stop_at_eos needs eos_token_id, or a tokenizer that has one; or stop_at_eos=False")
        ends = [given] if isinstance(given, int) else list(given)
        padding = ends[0] if isinstance(given, int) or own is None else own
        return {"eos_token_id": tuple(ends), "pad_token_id": padding}

    def _steps(self, decoder: LensDecoder, use_past_kv_cache: bool, verbose: bool) -> Iterator[Tensor]:
        from tqdm.auto import tqdm

        if decoder.options.max_new_tokens <= 0:
            return
        with tqdm(total=decoder.options.max_new_tokens, disable=not verbose) as bar:
            for new in steps(self.native, decoder, use_past_kv_cache):
                bar.update()
                yield new

    def _wants_logits(self, others: dict[str, Any]) -> bool:
        ignored = sorted(others.keys() - {"output_logits", "return_dict_in_generate"})
        if ignored:
            warnings.warn(f"generate does not follow {', '.join(ignored)}", UserWarning, stacklevel=3)
        return bool(others.get("output_logits"))

    def _answer(self, ids: Tensor, return_type: str) -> Any:
        if return_type == "tokens":
            return ids
        if return_type == "embeds":
            return self.native.embed(ids)
        decode = self._needed_tokenizer().decode
        texts = [decode(row, skip_special_tokens=True) for row in ids.tolist()]
        return texts[0] if len(texts) == 1 else texts

    def _with_logits(self, decoder: LensDecoder) -> Any:
        from transformers.generation.utils import GenerateDecoderOnlyOutput

        return GenerateDecoderOnlyOutput(sequences=decoder.ids, logits=tuple(decoder.logits))


def _decoder(
    prompt: tuple[Tensor, Tensor | None], new: int, ends: dict[str, Any], sampling: dict[str, Any] | None
) -> LensDecoder:
    return LensDecoder(Options(max_new_tokens=new, **ends), *prompt, sampling)
