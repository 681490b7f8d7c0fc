"""Hold an implementation of an op against its contract, on any device.

The measure is float64 arithmetic: the reference, called with float64 inputs.
"""

from sglang_fl.conformance.check import check_case, check_impl
from sglang_fl.conformance.declared import check_declared
from sglang_fl.conformance.verdict import ASPECTS, STRESS, Verdict, verify_impl
from sglang_fl.ops.compare import error_in_units

__all__ = [
    "ASPECTS",
    "STRESS",
    "Verdict",
    "check_case",
    "check_declared",
    "check_impl",
    "error_in_units",
    "verify_impl",
]
