"""Short names of hook points: ("q", 3) for "blocks.3.attn.hook_q".

They are TransformerLens's, so that what its users type works.
"""

import re

ALIASES = {
    "attn": "pattern",
    "attn_logits": "attn_scores",
    "query": "q",
    "key": "k",
    "value": "v",
    "mlp_pre": "pre",
    "mlp_post": "post",
}
SUBLAYERS = {"a": "attn", "attention": "attn", "m": "mlp", "b": None, "block": None, "blocks": None}
IN_ATTN = set("q k v z rot_q rot_k attn_scores pattern result qkv q_in k_in v_in".split())
IN_MLP = set("pre mid pre_linear act post gate_in up_in".split())
IN_NORM = {"scale", "normalized"}


def get_act_name(name: str, layer: int | None = None, layer_type: str | None = None) -> str:
    """The full name of a hook point, from a short one, a block's number, and a sublayer where there are several.

    >>> get_act_name("q", 3), get_act_name("scale", 3, "ln1"), get_act_name("resid_pre", 0)
    ('blocks.3.attn.hook_q', 'blocks.3.ln1.hook_scale', 'blocks.0.hook_resid_pre')
    >>> get_act_name("q3"), get_act_name("scale3ln1"), get_act_name("normalized"), get_act_name("attn", 5)
    ('blocks.3.attn.hook_q', 'blocks.3.ln1.hook_scale', 'ln_final.hook_normalized', 'blocks.5.attn.hook_pattern')

    A full name is given back as it is, and "_grad" at the end stays there.
    """
    if layer is None and layer_type is None:
        if "." in name or name.startswith("hook_"):
            return name
        if together := re.fullmatch(r"([a-z_]+)(\d+)(.*)", name):
            short, digits, layer_type = together.groups()
            return get_act_name(short, int(digits), layer_type or None)
    short = name.removesuffix("_grad")
    ending = name[len(short) :]
    short = ALIASES.get(short, short)
    place = [] if layer is None else [f"blocks.{layer}"]
    if sublayer := _sublayer(short, layer, layer_type):
        place.append(sublayer)
    return ".".join([*place, f"hook_{short}{ending}"])


def _sublayer(short: str, layer: int | None, layer_type: str | None) -> str | None:
    if short in IN_ATTN:
        return "attn"
    if short in IN_MLP:
        return "mlp"
    if short in IN_NORM and layer is None:
        return "ln_final"
    return SUBLAYERS.get(layer_type, layer_type) if layer_type else None
