"""Rotary embedding in config.json, in both spellings, to and from nnzoo's classes.

transformers 5 writes `rope_parameters`: {"rope_type": ..., "rope_theta": ..., ...}. Before it were `rope_theta` and
`rope_scaling`: {"type" or "rope_type": ..., ...}. Defaults are those of transformers' modeling_rope_utils.py.
"""

import math
from collections.abc import Callable
from typing import Any

from nnzoo.architectures.rotary import DynamicRope, LinearRope, Llama3Rope, Rope, YarnRope
from nnzoo.weights.settings import Settings, listed

DEFAULT_THETA = 10000.0


def read_rope(settings: Settings, n_ctx: int) -> Rope:
    """The rotary embedding of a config.json; two spellings that disagree are refused."""
    theta = settings.optional_number("rope_theta", positive=True)
    original = settings.optional_integer("original_max_position_embeddings")
    settings.only("partial_rotary_factor", 1, "part of a head left unrotated is not implemented")
    settings.only("rope_interleaved", False, "pairs are (i, i + d_head / 2) here")
    tables = {key: settings.table(key) for key in ("rope_scaling", "rope_parameters")}
    ropes = [_from_table(Settings(t, f"{settings.where}, {k}"), theta, original, n_ctx) for k, t in tables.items() if t]
    if not ropes:
        return Rope(theta=DEFAULT_THETA if theta is None else theta)
    if ropes[0] != ropes[-1]:
        raise settings.error("rope_scaling", tables["rope_scaling"], "and 'rope_parameters' disagree: remove one")
    return ropes[0]


def write_rope(rope: Rope) -> dict[str, Any]:
    """The settings of config.json, in both spellings: transformers 4 and 5 read what they know."""
    kind = next(kind for kind, (type_, _) in KINDS.items() if type_ is type(rope))
    scaling = {"rope_type": kind} | {key: getattr(rope, name) for key, name in WRITTEN.items() if hasattr(rope, name)}
    return {
        "rope_parameters": scaling | {"rope_theta": rope.theta},
        "rope_theta": rope.theta,
        "rope_scaling": None if kind == "default" else scaling,
    }


def _from_table(table: Settings, theta: float | None, original: int | None, n_ctx: int) -> Rope:
    table.same("type", "rope_type")
    kind = table.text("rope_type", table.text("type", "default"))
    if kind not in KINDS:
        raise table.error("rope_type", kind, f"is not implemented; nnzoo knows {listed(KINDS)}")
    table.only("partial_rotary_factor", 1, "part of a head left unrotated is not implemented")
    own_theta = table.number("rope_theta", DEFAULT_THETA if theta is None else theta, positive=True)
    if theta is not None and theta != own_theta:
        raise table.error("rope_theta", own_theta, f"and 'rope_theta' = {theta} outside of it disagree: remove one")
    rope = KINDS[kind][1](table, own_theta, original, n_ctx)
    table.finish(UNUSED.get(kind, {}), {})
    return rope


def _plain(table: Settings, theta: float, original: int | None, n_ctx: int) -> Rope:
    return Rope(theta=theta)


def _linear(table: Settings, theta: float, original: int | None, n_ctx: int) -> Rope:
    return LinearRope(theta=theta, factor=_required(table, "factor"))


def _dynamic(table: Settings, theta: float, original: int | None, n_ctx: int) -> Rope:
    return DynamicRope(theta=theta, factor=_required(table, "factor"), n_ctx=n_ctx)


def _llama3(table: Settings, theta: float, original: int | None, n_ctx: int) -> Rope:
    return Llama3Rope(
        theta=theta,
        factor=_required(table, "factor"),
        low_freq_factor=_required(table, "low_freq_factor"),
        high_freq_factor=_required(table, "high_freq_factor"),
        original_n_ctx=_original(table, original, n_ctx),
    )


def _yarn(table: Settings, theta: float, original: int | None, n_ctx: int) -> Rope:
    original_n_ctx = _original(table, original, n_ctx)
    factor = table.optional_number("factor", positive=True)
    if factor is None:
        factor = n_ctx / original_n_ctx
    return YarnRope(
        theta=theta,
        factor=factor,
        beta_fast=table.optional_number("beta_fast") or 32.0,
        beta_slow=table.optional_number("beta_slow") or 1.0,
        original_n_ctx=original_n_ctx,
        attention_factor=_attention_factor(table, factor),
        truncate=table.flag("truncate", True),
    )


def _attention_factor(table: Settings, factor: float) -> float:
    """What cos and sin are multiplied by: as given, or by the YaRN paper's rule as DeepSeek extended it."""
    given = table.optional_number("attention_factor")
    mscale, mscale_all_dim = table.optional_number("mscale"), table.optional_number("mscale_all_dim")
    if given is not None:
        return given
    if mscale and mscale_all_dim:
        return _loudness(factor, mscale) / _loudness(factor, mscale_all_dim)
    return _loudness(factor, 1.0)


def _loudness(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _original(table: Settings, outside: int | None, n_ctx: int) -> int:
    inside = table.optional_integer("original_max_position_embeddings")
    if outside is not None:  # Phi-3's place for it, which transformers prefers
        return outside
    return n_ctx if inside is None else inside


def _required(table: Settings, key: str) -> float:
    if key not in table:
        kind = table.text("rope_type", table.text("type", "default"))
        raise table.error("rope_type", kind, f"needs {key!r}, which is missing")
    return table.number(key, 0.0, positive=True)


Reader = Callable[[Settings, float, int | None, int], Rope]
KINDS: dict[str, tuple[type[Rope], Reader]] = {
    "default": (Rope, _plain),
    "linear": (LinearRope, _linear),
    "dynamic": (DynamicRope, _dynamic),
    "llama3": (Llama3Rope, _llama3),
    "yarn": (YarnRope, _yarn),
}

# what transformers lets a table hold and computes nothing from
UNUSED = {
    kind: {"original_max_position_embeddings": "only max_position_embeddings counts"} for kind in ("linear", "dynamic")
}

# Hugging Face's name -> the field of nnzoo's class; a field that a class has not got is not written
WRITTEN = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_n_ctx",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
    "truncate": "truncate",
}
