"""A vendor package for a CPU that has kernels of every kind, for the tests of the switches.

Not imported by tests: its text becomes the module of an installed package. ``TOY_FUSES=1`` makes SGLang
think, from the first norm on, that this CPU has its kernel for the norms of query and key, and brings one.
"""

import os
import sys

import torch

from sglang_fl.ops import OPS
from sglang_fl.vendor import BackendKind, OpImpl, Vendor

rotary_embedding = OPS["rotary_embedding"].reference
silu_and_mul = OPS["silu_and_mul"].reference
KEPT = []


def why_unavailable() -> str | None:
    """Return None: this chip is everywhere."""
    return None


def rms_norm(x, weight, eps, residual=None):
    """Run the reference; where asked, give SGLang a shortcut past the norms that follow."""
    if os.environ.get("TOY_FUSES") == "1" and not KEPT:
        offer_fused_qk_norm()
    return OPS["rms_norm"].reference(x, weight, eps, residual)


def burning(x, weight, eps, residual=None):
    """Fail as a kernel may."""
    raise RuntimeError("the chip has caught fire")


def offer_fused_qk_norm():
    """Bring the kernel of SGLang's ``apply_qk_norm``, and let its question be answered with yes."""
    library = torch.library.Library("sgl_kernel", "FRAGMENT")
    library.define("fused_qk_norm_cpu(Tensor q, Tensor k, Tensor qw, Tensor kw, float eps) -> ()")
    library.impl("fused_qk_norm_cpu", norm_in_place, "CPU")
    KEPT.append(library)
    sys.modules["sglang.srt.models.utils"].can_use_fused_qk_norm_cpu = lambda *facts: True


def norm_in_place(q, k, q_weight, k_weight, eps):
    """Normalise each head of query and key where they lie."""
    for x, weight in ((q, q_weight), (k, k_weight)):
        heads = x.view(*x.shape[:-1], -1, weight.shape[0])
        heads.copy_(OPS["rms_norm"].reference(heads, weight, eps))


FLAGOS, VENDOR_KIND = BackendKind.FLAGOS, BackendKind.VENDOR

VENDOR = Vendor(
    "toy",
    device_type="cpu",
    core_api=1,
    probe="toy_vendor:why_unavailable",
    platform="sglang_fl.sglang_adapter.cpu_platform.CpuPlatform",
    impls=(
        OpImpl("rms_norm", FLAGOS, "flagos", "toy_vendor:rms_norm"),
        OpImpl("silu_and_mul", FLAGOS, "flagos", "toy_vendor:silu_and_mul"),
        OpImpl("rms_norm", VENDOR_KIND, "vendor.toy", "toy_vendor:rms_norm"),
        OpImpl("rms_norm", VENDOR_KIND, "vendor.toy.burning", "toy_vendor:burning"),
        OpImpl("silu_and_mul", VENDOR_KIND, "vendor.toy", "toy_vendor:silu_and_mul"),
        OpImpl("rotary_embedding", VENDOR_KIND, "vendor.toy", "toy_vendor:rotary_embedding"),
    ),
)
