"""Layer 1: PyTorch's ATen ops, replaced by a vendor's kernels (FlagGems' or its own)."""

from sglang_fl.aten.layer_1 import Layer1, registered_layer_1
from sglang_fl.aten.plan import (
    Decision,
    Plan,
    load_kernels,
    make_plan,
    names_of_nothing,
    offered_ops,
    plan_layer_1,
)
from sglang_fl.aten.record_log import AtenRecord
from sglang_fl.aten.switchboard import AtenSwitchboard

__all__ = [
    "AtenRecord",
    "AtenSwitchboard",
    "Decision",
    "Layer1",
    "Plan",
    "load_kernels",
    "make_plan",
    "names_of_nothing",
    "offered_ops",
    "plan_layer_1",
    "registered_layer_1",
]
