"""Arguments that users of transformers and nnsight give to a model's constructor: which are welcome, which are not."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nnzoo.weights.devices import usable

ANYTHING = object()

# name -> the values with which it makes no difference here
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "attn_implementation": (None, "eager", "sdpa", "flash_attention_2"),  # they agree to rounding; ours takes its own
    "low_cpu_mem_usage": (ANYTHING,),  # weights are mapped, and never held twice
    "use_safetensors": (None, True),
    "trust_remote_code": (None, False),
    "task": (None, "text-generation"),
    "use_fast": (None, True),
}
# name -> why it is refused
REFUSED = {
    "attn_implementation": "attention is computed by PyTorch's kernels, or step by step where somebody looks",
    "use_safetensors": "weights are read from safetensors only: a pickle can run any code when it is read",
    "trust_remote_code": "code that comes with a checkpoint is never run; GPT-2, LLaMA and Mistral need none",
    "task": "a LanguageModel generates text",
    "use_fast": "tokenizers are those of the tokenizers library",
    "load_in_8bit": "weights are not quantized; a smaller dtype: dtype=torch.bfloat16",
    "load_in_4bit": "weights are not quantized; a smaller dtype: dtype=torch.bfloat16",
    "quantization_config": "weights are not quantized; a smaller dtype: dtype=torch.bfloat16",
    "max_memory": "a model is on one device: device=",
    "offload_folder": "a model is on one device: device=",
    "use_auth_token": "it is called token=",
    "output_attentions": "every pattern is there when it is asked for: ...attn.output[1] in a trace",
    "output_hidden_states": "every hidden state is there when it is asked for: ...h[i].output[0] in a trace",
    "torchscript": "it changes how transformers ties weights",
    "envoys": "values are read at .output, .input and hook points; a module of your own: model.path.name = module",
    "automodel": "the family is what config.json says",
    "config": "the config is the checkpoint's",
    "state_dict": "weights are the checkpoint's; others: model.load_state_dict(...) afterwards",
    "subfolder": "give the path of the folder itself",
    "adapter_kwargs": "adapters are not loaded",
}


def check(others: Mapping[str, Any], known: list[str]) -> None:
    """Raise TypeError for an argument that would make a difference and is not implemented, by its name."""
    for name, value in others.items():
        if without_effect(name, value):
            continue
        if name in REFUSED:
            raise TypeError(f"LanguageModel takes no {name}={value!r:.60}: {REFUSED[name]}")
        near = difflib.get_close_matches(name, [*known, *WITHOUT_EFFECT], n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it knows {', '.join(known)}"
        raise TypeError(f"LanguageModel has no argument {name!r}; {hint}")


def without_effect(name: str, value: Any) -> bool:
    """Whether an argument of transformers makes no difference here, with this value.

    >>> without_effect("low_cpu_mem_usage", True), without_effect("use_safetensors", False)
    (True, False)
    """
    fine = WITHOUT_EFFECT.get(name, ())
    return any(one is ANYTHING or (type(one) is type(value) and one == value) for one in fine)


def check_path(path_or_id: Any) -> None:
    """Raise TypeError for a model object where a name is asked for."""
    if not isinstance(path_or_id, (str, Path)):
        raise TypeError(
            f"a model comes from a folder or an id, not from a {type(path_or_id).__name__}; one of transformers: "
            "model.save_pretrained(folder), then LanguageModel(folder)"
        )


def either(**given: Any) -> Any:
    """The value of an argument with two names; ValueError where both are given and differ.

    >>> either(dtype=None, torch_dtype="float16")
    'float16'
    """
    values = {name: value for name, value in given.items() if value is not None}
    if len({str(value).removeprefix("torch.") for value in values.values()}) > 1:
        raise ValueError(f"{' and '.join(f'{name}={value}' for name, value in values.items())} contradict each other")
    return next(iter(values.values()), None)


def device_of(device: Any) -> torch.device:
    """The one device that is asked for: "auto" is a GPU where there is one.

    >>> device_of({"": "cpu"}), device_of(None)
    (device(type='cpu'), device(type='cpu'))
    """
    if isinstance(device, dict):
        if len(set(map(str, device.values()))) != 1:
            raise TypeError(f"device_map={device} places layers one by one, which is not implemented; name one device")
        device = next(iter(device.values()))
    if device is None or device == "auto":
        return torch.device("cuda" if device == "auto" and torch.cuda.is_available() else "cpu")
    if device in ("balanced", "balanced_low_0", "sequential"):
        raise TypeError(f"device_map={device!r} spreads layers over devices, which is not implemented; name one device")
    try:
        return torch.device(device)  # it need not be here: weights may never be read
    except RuntimeError:
        return usable(device)


def settings_of_tokenizer(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Attributes that a tokenizer shall have; TypeError for padding on the right, since prompts are padded left."""
    settings = dict(settings or {})
    if settings.get("padding_side", "left") != "left":
        raise TypeError("prompts of different lengths are padded on the left here; leave padding_side out")
    return settings


def set_up(tokenizer: Any, settings: Mapping[str, Any]) -> None:
    """Let a tokenizer pad on the left, by the end token where it has no other, and give it the `settings`.

    Its tables of several texts, `model.tokenizer(texts, padding=True)`, then end with each text's last token.
    """
    if hasattr(tokenizer, "padding_side"):
        tokenizer.padding_side = "left"
    if getattr(tokenizer, "pad_token", "") is None and getattr(tokenizer, "eos_token", None) is not None:
        tokenizer.pad_token = tokenizer.eos_token
    for name, value in settings.items():
        setattr(tokenizer, name, value)
