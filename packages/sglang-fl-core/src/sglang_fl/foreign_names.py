"""What other plugins of FlagOS, for SGLang and for vLLM, call what is here, and what it is called here.

Data alone: a message that refuses one of these names says ours. ``docs/coming-from.md`` shows the tables.
"""

import re

__all__ = ["NAMES", "NO_EFFECT", "VARIABLES", "is_foreign", "markdown_tables", "our_variable"]

#: Vendors, ops and backend kinds.
NAMES: dict[str, tuple[str, ...]] = {
    "cuda": ("nvidia",),
    "npu": ("ascend",),
    "huawei": ("ascend",),
    "cambricon": ("mlu",),
    "topk": ("topk_softmax", "topk_sigmoid"),
    "mrotary_embedding": ("mrope",),
    "gelu_tanh_and_mul": ("gelu_and_mul",),
    "rmsnorm": ("rms_norm",),
    "rope": ("rotary_embedding",),
    "apply_rotary_pos_emb": ("rotary_embedding",),
    "fused_moe_unquantized": ("fused_moe",),
    "flaggems": ("flagos",),
    "flag_gems": ("flagos",),
    "triton": ("flagos",),
    "torch": ("reference",),
    "pytorch": ("reference",),
    "native": ("reference",),
}
#: Variables whose meaning has another name here.
VARIABLES = {
    "FLAGGEMS_ENABLE_OPLIST_PATH": "SGLANG_FLAGGEMS_LOG_PATH",
    "SGLANG_FLAGOS_BLACKLIST": "SGLANG_FL_FLAGOS_BLACKLIST",
    "SGLANG_FLAGOS_WHITELIST": "SGLANG_FL_FLAGOS_WHITELIST",
    "SGLANG_FL_BLACKLIST": "SGLANG_FL_OOT_BLACKLIST",
    "SGLANG_FL_DISPATCH_DEBUG": "SGLANG_FL_LOG_LEVEL",
    "SGLANG_FL_USE_FLAGGEMS": "USE_FLAGGEMS",
    "SGLANG_FL_WHITELIST": "SGLANG_FL_OOT_WHITELIST",
    "SGLANG_USE_FLAGGEMS": "USE_FLAGGEMS",
    "USE_FLAGGEM": "USE_FLAGGEMS",
    "USE_FLAG_GEMS": "USE_FLAGGEMS",
    "VLLM_FL_PREFER_ENABLED": "SGLANG_FL_OOT_ENABLED",
}
#: Variables of what is not here.
NO_EFFECT = ("FLAGCX_PATH", "SGLANG_FL_DISAGG_FLAGCX", "USE_FLAGCX")

#: ``SGLANGFL_PREFER``, ``SGLANG_FLAGOS_PREFER``, ``VLLM_FL_PREFER``; no other.
_ALIKE = re.compile(r"(?:SGLANG|VLLM)_?(FL|FLAGOS|FLAGGEMS|FLAG_GEMS)_+(\w+)", re.ASCII)


def is_foreign(name: str) -> bool:
    """Whether a variable is, or looks like, a setting of such a plugin."""
    upper = name.upper()
    return upper in {*VARIABLES, *NO_EFFECT, "USE_FLAGGEMS"} or _ALIKE.fullmatch(upper) is not None


def our_variable(name: str) -> str | None:
    """Return what a foreign variable would be called here, if there is one; None for what is not here."""
    upper = name.upper()
    if upper in VARIABLES or upper in NO_EFFECT:
        return VARIABLES.get(upper)
    found = _ALIKE.fullmatch(upper)
    if found is None:
        return upper
    if found[1] in ("FLAGGEMS", "FLAG_GEMS"):
        return f"SGLANG_FLAGGEMS_{found[2]}"
    return VARIABLES.get(f"SGLANG_FL_{found[2]}", f"SGLANG_FL_{found[2]}")


def markdown_tables() -> str:
    """Return the tables of ``docs/coming-from.md``: variables, then names."""
    rows = ["| variable | here |", "|---|---|"]
    rows += [f"| `{theirs}` | `{ours}` |" for theirs, ours in VARIABLES.items()]
    rows += [f"| `{name}` | nothing: layer 3 (communication) is not in this version |" for name in NO_EFFECT]
    rows += ["", "| name | here |", "|---|---|"]
    rows += [
        f"| `{theirs}` | {' or '.join(f'`{name}`' for name in ours)} |" for theirs, ours in NAMES.items()
    ]
    return "\n".join(rows)
