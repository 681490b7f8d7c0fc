"""What a vendor package says about itself: one ``Vendor`` object with its implementations.

The object is data. Kernels, probes and platforms are named by strings and imported only when
they are needed, so that listing them works on a machine without any accelerator stack.
"""

from sglang_fl.vendor.aten import AtenChoice, AtenKernel, AtenOffer, AtenOp, AtenQuarantined
from sglang_fl.vendor.flag_gems import flag_gems_aten, flag_gems_aten_kernel, flag_gems_impl
from sglang_fl.vendor.impls import BackendKind, OpChoice, OpImpl, Quarantined
from sglang_fl.vendor.targets import is_installed, load_target, why_no_device, why_no_target
from sglang_fl.vendor.vendor import CORE_API, OLDEST_CORE_API, Vendor

__all__ = [
    "CORE_API",
    "OLDEST_CORE_API",
    "AtenChoice",
    "AtenKernel",
    "AtenOffer",
    "AtenOp",
    "AtenQuarantined",
    "BackendKind",
    "OpChoice",
    "OpImpl",
    "Quarantined",
    "Vendor",
    "flag_gems_aten",
    "flag_gems_aten_kernel",
    "flag_gems_impl",
    "is_installed",
    "load_target",
    "why_no_device",
    "why_no_target",
]
