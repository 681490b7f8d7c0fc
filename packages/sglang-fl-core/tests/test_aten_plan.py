"""Which ATen ops are replaced, and why the others are not."""

from collections.abc import Callable

import pytest

from sglang_fl.aten import Plan, make_plan, names_of_nothing
from sglang_fl.aten.plan import load_kernels
from sglang_fl.errors import SettingsError, VendorError
from sglang_fl.registry.cpu import CPU
from sglang_fl.settings import Settings
from sglang_fl.vendor import AtenChoice, AtenOffer, AtenOp, AtenQuarantined, Vendor

OPS = tuple(AtenOp(f"{name}.Tensor", name) for name in ("mul", "add", "sub", "pow", "lt"))
CHOICES = (
    AtenChoice(("mul", "aten::add", "lt"), True, "as fast as PyTorch's on a toy"),
    AtenChoice(("sub.Tensor",), False, "40 us of host time"),
    AtenChoice(("an_op_of_another_version",), True, "fast"),
)
WRONG = AtenQuarantined(("lt", "aten::gone"), "it compares in float32", "pydantic", ">=1", "toy:proof")

Chip = Callable[..., Vendor]


@pytest.fixture
def chip(write_module: Callable[[str], str]) -> Chip:
    """``chip(choices, quarantine)`` makes a vendor with five ATen ops."""
    module = write_module(
        """
        from sglang_fl.vendor import AtenKernel, AtenOp

        NAMES = ("mul", "add", "sub", "pow", "lt")

        def ops():
            return [AtenOp(f"{name}.Tensor", name) for name in NAMES]

        def kernels():
            return [AtenKernel(f"{name}.Tensor", name, print) for name in NAMES]

        def twice():
            return ops() + ops()

        def broken():
            return 1 / 0

        def texts():
            return ["mul"]
        """
    )

    def chip(
        choices: tuple[AtenChoice, ...] = CHOICES,
        quarantine: tuple[AtenQuarantined, ...] = (),
        ops: str = "ops",
        requires: tuple[str, ...] = (),
    ) -> Vendor:
        offer = AtenOffer(f"{module}:{ops}", f"{module}:kernels", requires, choices, quarantine)
        return Vendor("toy", "cpu", 1, "toy:why", aten=offer)

    return chip


def plan(vendor: Vendor, monkeypatch: pytest.MonkeyPatch, **environment: str) -> Plan:
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    return make_plan(Settings.read(vendor), vendor)


def told(made: Plan) -> dict[str, tuple[bool, str]]:
    return {decision.op.name: (decision.is_replaced, decision.reason) for decision in made.decisions}


def test_what_the_vendor_measured_is_replaced_and_nothing_else(chip: Chip, monkeypatch: pytest.MonkeyPatch):
    assert told(plan(chip(), monkeypatch)) == {
        "mul": (True, "as fast as PyTorch's on a toy"),
        "add": (True, "as fast as PyTorch's on a toy"),
        "sub": (False, "40 us of host time"),
        "pow": (False, "not measured"),
        "lt": (True, "as fast as PyTorch's on a toy"),
    }


def test_names_of_nothing_are_told_to_who_keeps_the_lists(chip: Chip):
    assert names_of_nothing(chip(quarantine=(WRONG,))) == ("an_op_of_another_version", "aten::gone")
    assert names_of_nothing(CPU) == ()


def test_white_list_stands_in_for_the_vendors(chip: Chip, monkeypatch: pytest.MonkeyPatch):
    made = plan(chip(), monkeypatch, SGLANG_FL_FLAGOS_WHITELIST="pow,aten::sub.Tensor")
    out = "not in SGLANG_FL_FLAGOS_WHITELIST"
    assert told(made) == {
        "mul": (False, out),
        "add": (False, out),
        "sub": (True, "SGLANG_FL_FLAGOS_WHITELIST names aten::sub.Tensor"),
        "pow": (True, "SGLANG_FL_FLAGOS_WHITELIST names pow"),
        "lt": (False, out),
    }
    assert made.complaints == ()


def test_black_list_is_taken_from_the_vendors(chip: Chip, monkeypatch: pytest.MonkeyPatch):
    made = plan(chip(), monkeypatch, SGLANG_FL_FLAGOS_BLACKLIST="aten::mul")
    assert [op.name for op in made.replaced] == ["add", "lt"]
    assert told(made)["mul"] == (False, "SGLANG_FL_FLAGOS_BLACKLIST names aten::mul")


def test_quarantine_stands_above_the_users_list_and_says_so(chip: Chip, monkeypatch: pytest.MonkeyPatch):
    made = plan(chip(quarantine=(WRONG,)), monkeypatch, SGLANG_FL_FLAGOS_WHITELIST="lt,mul")
    reason = (
        "in quarantine: it compares in float32 (pydantic >=1); !lt in a list of SGLANG_FL_FLAGOS_* lifts it"
    )
    assert [op.name for op in made.replaced] == ["mul"]
    assert told(made)["lt"] == (False, reason)
    assert made.complaints == (f"SGLANG_FL_FLAGOS_WHITELIST: lt (aten::lt.Tensor) is not replaced: {reason}",)


@pytest.mark.parametrize("lift", ["!lt", "!aten::lt", "!lt.Tensor"])
def test_lifted_quarantine_leaves_the_rest_to_the_lists(
    chip: Chip, monkeypatch: pytest.MonkeyPatch, lift: str
):
    made = plan(chip(quarantine=(WRONG,)), monkeypatch, SGLANG_FL_FLAGOS_BLACKLIST=f"mul,{lift}")
    assert [op.name for op in made.replaced] == ["add", "lt"]
    assert made.complaints == (
        f"{lift} lifts the quarantine of aten::lt.Tensor: it compares in float32 (pydantic >=1)",
    )


def test_lift_of_what_is_free_is_told(chip: Chip, monkeypatch: pytest.MonkeyPatch):
    made = plan(chip(), monkeypatch, SGLANG_FL_FLAGOS_WHITELIST="!mul")
    assert made.complaints == ("!mul lifts nothing: that ATen op is not in quarantine here",)
    assert len(made.replaced) == 3


def test_quarantine_of_another_version_is_of_no_account(chip: Chip, monkeypatch: pytest.MonkeyPatch):
    entry = AtenQuarantined(("lt",), "wrong", "pydantic", "<1", "toy:proof")
    assert "lt" in [op.name for op in plan(chip(quarantine=(entry,)), monkeypatch).replaced]


@pytest.mark.parametrize("name", ["SGLANG_FL_FLAGOS_WHITELIST", "SGLANG_FL_FLAGOS_BLACKLIST"])
@pytest.mark.parametrize("text", ["mul,ad", "!ad"])
def test_unknown_name_is_refused(chip: Chip, monkeypatch: pytest.MonkeyPatch, name: str, text: str):
    with pytest.raises(SettingsError, match=f"{name}='{text}': .* replace no ATen op 'ad'. Nearest: add."):
        plan(chip(), monkeypatch, **{name: text})


def test_vendors_own_list_is_its_default(chip: Chip):
    vendor = Vendor("toy", "cpu", 1, "toy:why", defaults={"flagos_blacklist": "mul"}, aten=chip().aten)
    assert [op.name for op in make_plan(Settings.read(vendor), vendor).replaced] == ["add", "lt"]


def test_layer_1_is_on_where_there_are_kernels_and_else_off(chip: Chip, monkeypatch: pytest.MonkeyPatch):
    assert Settings.read(chip()).use_flaggems
    assert Settings.read(chip()).source("use_flaggems") == "vendor toy"
    assert not Settings.read(CPU).use_flaggems
    absent = chip(requires=("no_such_library",))
    assert not Settings.read(absent).use_flaggems
    assert plan(absent, monkeypatch, USE_FLAGGEMS="1") == Plan()
    assert plan(CPU, monkeypatch, USE_FLAGGEMS="1") == Plan()


def test_off_asks_the_vendor_nothing(chip: Chip, monkeypatch: pytest.MonkeyPatch):
    vendor = chip(ops="no_such_function")
    assert plan(vendor, monkeypatch, USE_FLAGGEMS="0", SGLANG_FL_FLAGOS_WHITELIST="nonsense") == Plan()


@pytest.mark.parametrize(
    ("ops", "fault"),
    [
        ("twice", "returned two kernels for aten::mul.Tensor"),
        ("texts", "returned a str, not a AtenOp"),
        ("missing", "has no function 'missing'"),
        ("broken", "the ATen ops of vendor toy cannot be listed: ZeroDivisionError: division by zero"),
    ],
)
def test_faulty_offer_is_the_vendors_fault(chip: Chip, monkeypatch: pytest.MonkeyPatch, ops: str, fault: str):
    with pytest.raises(VendorError, match=fault):
        plan(chip(ops=ops), monkeypatch)


def test_kernels_are_loaded_in_the_vendors_environment(chip: Chip, monkeypatch: pytest.MonkeyPatch):
    offer = chip().aten
    environment = {"TOY_CHIP": "toy", "TOY_KEPT": "toy"}
    monkeypatch.delenv("TOY_CHIP", raising=False)
    monkeypatch.setenv("TOY_KEPT", "the user's")
    vendor = Vendor("toy", "cpu", 1, "toy:why", aten=offer, environment=environment)
    assert [kernel.overload for kernel in load_kernels(vendor)] == [str(op.overload) for op in OPS]
    import os

    assert (os.environ.pop("TOY_CHIP"), os.environ["TOY_KEPT"]) == ("toy", "the user's")
    assert load_kernels(CPU) == ()


def test_all_in_a_white_list_is_every_op_but_those_in_quarantine(chip: Chip, monkeypatch: pytest.MonkeyPatch):
    made = plan(chip(quarantine=(WRONG,)), monkeypatch, SGLANG_FL_FLAGOS_WHITELIST="all")
    assert [op.name for op in made.replaced] == ["mul", "add", "sub", "pow"]
    assert told(made)["pow"] == (True, "SGLANG_FL_FLAGOS_WHITELIST names all")
    assert told(made)["lt"][1].startswith("in quarantine: it compares in float32")
    assert made.complaints == ()


def test_all_beside_a_lift_takes_that_op_too(chip: Chip, monkeypatch: pytest.MonkeyPatch):
    made = plan(chip(quarantine=(WRONG,)), monkeypatch, SGLANG_FL_FLAGOS_WHITELIST="all,!lt")
    assert [op.name for op in made.replaced] == ["mul", "add", "sub", "pow", "lt"]


def test_all_beside_other_names_is_refused(chip: Chip, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(
        SettingsError, match=r"FLAGOS_WHITELIST='all,mul': 'all' stands for every ATen op.*Write aten::all"
    ):
        plan(chip(), monkeypatch, SGLANG_FL_FLAGOS_WHITELIST="all,mul")
