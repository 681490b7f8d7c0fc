"""A request ends the server, or wrong numbers: does PyTorch's attention take fewer key than query heads?"""

import re
from collections.abc import Iterator

from sglang_fl.diagnostics.doctor.child import Child, last_line, run_python
from sglang_fl.diagnostics.doctor.configured import configured
from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem, unknown
from sglang_fl.diagnostics.doctor.launch import Launch
from sglang_fl.vendor import Vendor

__all__ = ["grouped_heads"]

SECONDS = 120
WHAT = "grouped heads"
#: The line of the child that tells how far the call is from the formula begins with it.
DISTANCE = "distance"
CALL = "scaled_dot_product_attention(enable_gqa=True)"

#: One call as SGLang's torch_native makes it, beside the formula in float64, with key heads expanded.
_TRY = f"""
import torch
from torch.nn.functional import scaled_dot_product_attention
from sglang_fl.startup import configure
device = configure().registry.vendor.device_type
torch.manual_seed(0)
given = [torch.randn(1, heads, 3, 16, dtype=torch.bfloat16) for heads in (4, 2, 2)]
found = scaled_dot_product_attention(*(x.to(device) for x in given), enable_gqa=True)
query, key, value = (x.double().repeat_interleave(4 // x.shape[1], dim=1) for x in given)
true = (query @ key.mT / 4).softmax(-1) @ value
print("\\n{DISTANCE}", float((found.cpu().double() - true).abs().max()))
"""
#: Results are below 4, where rounding to bfloat16 is off by 2**-7 at most; this is four times as much.
MOST = 2**-5


def grouped_heads(launch: Launch) -> Iterator[Finding]:
    """Does PyTorch's attention take grouped heads on this device? It is called once, in its own process."""
    configuration = configured()
    if configuration is not None:
        yield _judged(run_python(_TRY, SECONDS), configuration.registry.vendor)


def _judged(child: Child, vendor: Vendor) -> Finding:
    if child.code is None:
        return unknown(WHAT, f"{CALL} is not done after {SECONDS} s", "see where it waits: py-spy dump")
    distance = re.search(rf"^{DISTANCE} (\S+)$", child.output, re.MULTILINE)
    if not child.code and distance is None:
        return unknown(WHAT, f"{CALL} was tried, but its process did not say what came of it")
    text = _fault(child, float(distance[1]) if distance else 0.0)
    if text is None:
        return ok(WHAT, f"PyTorch's attention takes them on {vendor.device_type}")
    if vendor.platform is None and vendor.device_type != "cpu":
        own = f"not needed by SGLang's own platform for {vendor.device_type}; of torch_native, {text}"
        return ok(WHAT, own, "leave out --attention-backend torch_native")
    remedy = (
        "--attention-backend sglang_fl (SGLang 0.5.22 or later), which does without that option; a PyTorch "
        f"for {vendor.device_type} that has it; or a model whose key heads were expanded to its query heads"
    )
    return problem(WHAT, f"a model with fewer key than query heads: {text}", remedy)


def _fault(child: Child, distance: float) -> str | None:
    """Say what is wrong with the call, or None."""
    if child.code:
        return f"{CALL} fails: {last_line(child.errors)}"
    if distance <= MOST:
        return None
    return f"{CALL} is off by {distance:.2g}, where rounding makes at most {MOST:.2g}"
