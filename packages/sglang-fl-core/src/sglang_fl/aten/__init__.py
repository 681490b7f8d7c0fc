"""Layer 1: PyTorch's ATen ops, replaced by a vendor's kernels (FlagGems' or its own).

Here is what plans; what registers and records, and imports PyTorch for that, is in ``layer_1``,
``switchboard`` and ``record_log``.
"""

from sglang_fl.aten.plan import (
    Decision,
    Plan,
    free_ops,
    load_kernels,
    make_plan,
    names_of_nothing,
    offered_ops,
    plan_layer_1,
)

__all__ = [
    "Decision",
    "Plan",
    "free_ops",
    "load_kernels",
    "make_plan",
    "names_of_nothing",
    "offered_ops",
    "plan_layer_1",
]
