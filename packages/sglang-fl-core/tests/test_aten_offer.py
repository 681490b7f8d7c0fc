"""What a vendor package says about its ATen kernels: what is refused."""

from collections.abc import Callable

import pytest

from sglang_fl.errors import VendorError
from sglang_fl.vendor import AtenChoice, AtenKernel, AtenOffer, AtenOp, AtenQuarantined

ENTRY = {
    "names": ("lt",),
    "reason": "it compares in float32",
    "library": "flag-gems",
    "versions": "==5.0.2",
    "reproduction": "toy.faults:lt",
}
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "overload": (
        lambda: AtenOp("aten::mul.Tensor", "mul"),
        "'aten::mul.Tensor' by 'mul': such names",
    ),
    "name": (
        lambda: AtenOp("mul.Tensor", "mul.Tensor"),
        "'mul.Tensor' by 'mul.Tensor': such",
    ),
    "no-names": (lambda: AtenChoice((), True, "fast"), "names and reason must not be empty"),
    "no-reason": (
        lambda: AtenChoice(("mul",), True, ""),
        "AtenChoice mul: names and reason must",
    ),
    "ops": (lambda: AtenOffer("toy", "toy:kernels"), "AtenOffer: ops: target 'toy' is not of the form"),
    "kernels": (lambda: AtenOffer("toy:ops", "toy"), "AtenOffer: kernels: target 'toy' is not of the form"),
    "twice": (
        lambda: AtenOffer(
            "toy:ops",
            "toy:kernels",
            choices=(AtenChoice(("mul",), True, "fast"), AtenChoice(("add", "mul"), False, "slow")),
        ),
        "'mul' appears twice in the choices",
    ),
    "quarantine-of-nothing": (lambda: AtenQuarantined(**ENTRY | {"names": ()}), "names is empty"),
    "no-fault": (lambda: AtenQuarantined(**ENTRY | {"reason": ""}), "AtenQuarantined lt: reason is empty"),
    "no-library": (
        lambda: AtenQuarantined(**ENTRY | {"library": ""}),
        "lt: library is empty",
    ),
    "versions": (lambda: AtenQuarantined(**ENTRY | {"versions": "5"}), "versions '5' must be like"),
    "proof": (
        lambda: AtenQuarantined(**ENTRY | {"reproduction": "lt"}),
        "reproduction: target 'lt' is",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_malformed_part_of_an_offer_is_refused(make: Callable[[], object], message: str):
    with pytest.raises(VendorError) as error:
        make()
    assert message in str(error.value)


def test_quarantine_tells_fault_and_versions():
    assert str(AtenQuarantined(**ENTRY)) == "it compares in float32 (flag-gems ==5.0.2)"


@pytest.mark.parametrize(
    ("overload", "exact"), [("mul.Tensor", "aten::mul.Tensor"), ("_softmax", "aten::_softmax.default")]
)
def test_op_is_told_as_atens_and_named_exactly(overload: str, exact: str):
    op = AtenOp(overload, "softmax")
    assert (str(op), op.exact) == (f"aten::{overload}", exact)


@pytest.mark.parametrize(
    ("module", "origin"),
    [("flag_gems.ops.mul", "flag_gems.ops.mul.mul"), ("", f"{__name__}.mul")],
)
def test_kernel_comes_from_its_module_or_that_of_its_function(module: str, origin: str):
    def multiply() -> None:
        """Stands for a kernel."""

    assert AtenKernel("mul.Tensor", "mul", multiply, module).origin == origin


def test_what_an_offer_needs_is_looked_up():
    assert AtenOffer("toy:ops", "toy:kernels", ("torch", "no_such_library")).missing == ("no_such_library",)
