"""An op's candidates in order, and the reasons of what is none."""

import re
from dataclasses import replace
from importlib.metadata import version

import pytest

from sglang_fl.dispatch.resolution import Resolution, Skipped, resolve, resolve_all
from sglang_fl.errors import SettingsError
from sglang_fl.ops import OPS
from sglang_fl.registry import InstalledVendor, Registry
from sglang_fl.registry.cpu import CPU
from sglang_fl.settings.policy import Policy, Prefer, parse_order
from sglang_fl.vendor import BackendKind, OpChoice, OpImpl, Quarantined, Vendor

FLAGOS, VENDOR, REFERENCE = BackendKind.FLAGOS, BackendKind.VENDOR, BackendKind.REFERENCE
OP = OPS["rms_norm"]


def impl(kind: BackendKind, name: str, *requires: str, op: str = "rms_norm") -> OpImpl:
    return OpImpl(op, kind, name, "no_such_package.kernels:rms_norm", requires=requires)


def registry(*impls: OpImpl, others: tuple[InstalledVendor, ...] = ()) -> Registry:
    toy = Vendor("toy", "cpu", 1, "no_such_package.probe:why", impls=impls)
    found = (InstalledVendor("cpu", "sglang-fl-core 1", CPU), InstalledVendor("toy", "sglang-fl-toy 1", toy))
    return Registry(toy, found + others)


def policy(order: str | None = None, prefer: Prefer = FLAGOS, strict: bool = False) -> Policy:
    return Policy(prefer, {} if order is None else {"rms_norm": parse_order(order)}, strict)


def ids(resolution: Resolution) -> list[str]:
    return [candidate.id for candidate in resolution.candidates]


OWN, NATIVE, GEMS = impl(FLAGOS, "flagos"), impl(VENDOR, "vendor.toy"), impl(FLAGOS, "flagos.flag_gems")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (policy(), ["flagos", "flagos.flag_gems", "vendor.toy", "reference"]),
        (policy(prefer=VENDOR), ["vendor.toy", "flagos", "flagos.flag_gems", "reference"]),
        (policy(prefer=REFERENCE), ["reference", "flagos", "flagos.flag_gems", "vendor.toy"]),
        (policy("vendor"), ["vendor.toy"]),
        (policy("vendor:toy|reference"), ["vendor.toy", "reference"]),
        (policy("impl:flagos.flag_gems|flagos"), ["flagos.flag_gems", "flagos"]),
        (policy("vendor|vendor:toy"), ["vendor.toy"]),
        (policy("reference", prefer=VENDOR), ["reference"]),
    ],
)
def test_candidates_follow_the_order_and_within_a_step_the_vendors_list(asked: Policy, expected: list[str]):
    # The vendor lists its native kernel between the two others.
    assert ids(resolve(OP, registry(OWN, NATIVE, GEMS), asked)) == expected


def test_reference_is_cores_own():
    (candidate,) = resolve(OP, registry(), policy("reference")).candidates
    assert candidate == OpImpl("rms_norm", REFERENCE, "reference", "sglang_fl.ops.rms_norm:rms_norm")


def test_implementations_of_other_ops_are_not_candidates():
    other = impl(FLAGOS, "flagos", op="silu_and_mul")
    assert ids(resolve(OP, registry(other), policy())) == ["reference"]


def test_what_is_not_installed_is_skipped_with_the_reason():
    missing = impl(FLAGOS, "flagos", "torch", "no_such_package", "nor_such")
    resolution = resolve(OP, registry(missing, NATIVE), policy())
    reason = Skipped("flagos", "no_such_package, nor_such is not installed")
    assert ids(resolution) == ["vendor.toy", "reference"]
    assert resolution.skipped == resolution.passed_over == (reason,)
    assert str(reason) == "flagos: no_such_package, nor_such is not installed"


def test_what_is_inside_a_missing_package_is_skipped_with_the_reason():
    resolution = resolve(OP, registry(impl(FLAGOS, "flagos", "no_such_package.ops")), policy())
    assert ids(resolution) == ["reference"]
    assert resolution.skipped[0] == Skipped("flagos", "no_such_package.ops is not installed")


def test_only_what_comes_before_the_first_candidate_was_passed_over():
    missing = impl(VENDOR, "vendor.toy", "no_such_package")
    resolution = resolve(OP, registry(OWN, missing), policy())
    assert ids(resolution) == ["flagos", "reference"]
    assert resolution.passed_over == ()
    assert [skipped.what for skipped in resolution.skipped] == ["vendor.toy"]


def test_step_that_means_nothing_here_is_skipped():
    resolution = resolve(OP, registry(OWN), policy())
    assert resolution.skipped == (Skipped("vendor", "vendor toy has none, and no other vendor is installed"),)


def test_reason_tells_what_other_vendors_are_installed_and_why_they_are_not_it():
    absent = Vendor("far", "far", 1, "no_such_package.probe:why")
    others = (
        InstalledVendor("far", "sglang-fl-far 1", absent, absence="no chip"),
        InstalledVendor("broken", "sglang-fl-broken 1", fault="ImportError: libbroken"),
        InstalledVendor("near", "sglang-fl-near 1", Vendor("near", "cpu", 1, "no_such_package.probe:why")),
    )
    resolution = resolve(OP, registry(others=others), policy())
    reason = "vendor toy has none (far: no chip; broken: ImportError: libbroken; near: not the chosen vendor)"
    assert resolution.skipped == (Skipped("flagos", reason), Skipped("vendor", reason))


def test_what_the_users_order_leaves_out_is_excluded_with_the_reason():
    resolution = resolve(OP, registry(OWN, NATIVE, GEMS), policy("vendor|impl:flagos"))
    reason = "not in the order given for this op"
    assert resolution.excluded == (Skipped("flagos.flag_gems", reason), Skipped("reference", reason))
    assert resolution.skipped == ()


def test_nothing_is_excluded_where_the_user_gave_no_order():
    assert resolve(OP, registry(OWN, NATIVE), policy()).excluded == ()


@pytest.mark.parametrize("strict", [False, True])
def test_strictness_is_handed_on(strict: bool):
    assert resolve(OP, registry(), policy(strict=strict)).strict is strict


@pytest.mark.parametrize(
    ("order", "reasons"),
    [
        ("vendor", "vendor.toy: no_such_package is not installed"),
        (
            "impl:flagos.x|vendor",
            (
                "impl:flagos.x: vendor toy has none, and no other vendor is installed; "
                "vendor.toy: no_such_package is not installed"
            ),
        ),
    ],
)
def test_order_that_cannot_be_had_is_refused_with_reasons_and_what_can_be(order: str, reasons: str):
    missing = impl(VENDOR, "vendor.toy", "no_such_package")
    expected = (
        f"SGLANG_FL_PER_OP: 'rms_norm={order}' is not available here: {reasons}. "
        f"Available for rms_norm: flagos, reference."
    )
    with pytest.raises(SettingsError, match=f"^{re.escape(expected)}$"):
        resolve(OP, registry(OWN, missing), policy(order))


def test_every_op_is_resolved():
    resolutions = resolve_all(registry(OWN), policy())
    assert resolutions.keys() == OPS.keys()
    assert ids(resolutions["rms_norm"]) == ["flagos", "reference"]
    assert ids(resolutions["silu_and_mul"]) == ["reference"]
    assert all(resolution.op is OPS[name] for name, resolution in resolutions.items())


def test_all_refusals_are_told_at_once():
    asked = Policy(per_op={"rms_norm": parse_order("vendor"), "silu_and_mul": parse_order("flagos")})
    with pytest.raises(SettingsError, match="is not available here") as error:
        resolve_all(registry(), asked)
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert any("'rms_norm=vendor'" in line for line in lines)
    assert any("'silu_and_mul=flagos'" in line for line in lines)


DENIED = "the vendor toy is denied (SGLANG_FL_DENY_VENDORS)"


def test_native_kernels_of_a_denied_vendor_are_skipped_and_no_others():
    resolution = resolve(OP, registry(NATIVE, OWN), Policy(VENDOR, deny_vendors=("toy",)))
    assert ids(resolution) == ["flagos", "reference"]
    assert resolution.passed_over == (Skipped("vendor.toy", DENIED),)


@pytest.mark.parametrize("allowed", [("toy",), ("far", "toy")])
def test_native_kernels_of_an_allowed_vendor_are_candidates(allowed: tuple[str, ...]):
    resolution = resolve(OP, registry(NATIVE), Policy(VENDOR, allow_vendors=allowed))
    assert ids(resolution) == ["vendor.toy", "reference"]


def test_order_for_a_denied_vendor_alone_is_refused():
    asked = replace(policy("vendor"), deny_vendors=("toy",))
    match = re.escape(
        f"'rms_norm=vendor' is not available here: vendor.toy: {DENIED}. Available for rms_norm: refer"
    )
    with pytest.raises(SettingsError, match=match):
        resolve(OP, registry(NATIVE), asked)


def test_refusal_names_the_place_where_the_order_stands():
    asked = replace(policy("vendor"), titles={"per_op": "SGLANG_FL_CONFIG='fl.yaml': op_backends"})
    with pytest.raises(SettingsError, match=r"^SGLANG_FL_CONFIG='fl\.yaml': op_backends: 'rms_norm=vendor'"):
        resolve(OP, registry(), asked)


def quarantined(versions: str = ">=1", library: str = "pydantic") -> tuple[Registry, str]:
    entry = Quarantined("rms_norm", "flagos", "it returns zeros", library, versions, "toy.proof:zeros")
    plain = registry(OWN, NATIVE)
    return replace(plain, vendor=replace(plain.vendor, quarantine=(entry,))), str(entry)


def test_kernel_in_quarantine_is_skipped_with_the_reason_and_the_way_out():
    found, entry = quarantined()
    resolution = resolve(OP, found, policy())
    assert ids(resolution) == ["vendor.toy", "reference"]
    reason = f"in quarantine: {entry}; !rms_norm in a list of SGLANG_FL_OOT_* lifts it"
    assert resolution.passed_over == (Skipped("flagos", reason),)
    assert entry == "it returns zeros (pydantic >=1)"


def test_order_for_a_kernel_in_quarantine_is_refused():
    found, entry = quarantined()
    with pytest.raises(SettingsError, match=f"flagos: in quarantine: {re.escape(entry)}"):
        resolve(OP, found, policy("impl:flagos"))


@pytest.mark.parametrize(
    ("versions", "library"),
    [("<1", "pydantic"), (f"!={version('pydantic')}", "pydantic"), (">=0", "no-such-library")],
)
def test_quarantine_holds_for_its_versions_alone(versions: str, library: str):
    found, _ = quarantined(versions, library)
    assert ids(resolve(OP, found, policy())) == ["flagos", "vendor.toy", "reference"]


@pytest.mark.parametrize("lifted", [frozenset({"rms_norm"}), frozenset({"rms_norm", "silu_and_mul"})])
def test_lifted_quarantine_lets_the_kernel_run(lifted: frozenset[str]):
    found, _ = quarantined()
    assert ids(resolve(OP, found, Policy(lifted=lifted)))[0] == "flagos"


def test_lifting_another_op_lets_nothing_run():
    found, _ = quarantined()
    assert "flagos" not in ids(resolve(OP, found, Policy(lifted=frozenset({"silu_and_mul"}))))


def test_filters_and_quarantine_stand_beside_each_other():
    found, _ = quarantined()
    asked = Policy(lifted=frozenset({"rms_norm"}), deny_vendors=("toy",))
    assert ids(resolve(OP, found, asked)) == ["flagos", "reference"]


MEASURED = OpChoice("rms_norm", "flagos", is_default=False, reason="0.95 of the speed of SGLang's own (H200)")


def measured(choice: OpChoice = MEASURED) -> Registry:
    found = registry(OWN, NATIVE)
    return replace(found, vendor=replace(found.vendor, choices=(choice,)))


def test_what_was_measured_to_cost_is_left_to_sglang_with_the_figure():
    resolution = resolve(OP, measured(), policy())
    assert resolution.sglang_first == f"flagos is no default here: {MEASURED.reason}"
    assert ids(resolution) == ["flagos", "vendor.toy", "reference"]


@pytest.mark.parametrize(
    "asked",
    [policy("flagos"), policy("flagos|reference"), replace(policy(), prefer_is_users=True)],
    ids=["its-order", "its-order-with-another", "its-kind"],
)
def test_what_was_measured_to_cost_runs_where_the_user_asks_for_it(asked: Policy):
    assert resolve(OP, measured(), asked).sglang_first is None


def test_another_kind_that_the_user_prefers_does_not_ask_for_it():
    own = measured()
    without = replace(own, vendor=replace(own.vendor, impls=(OWN,)))
    assert resolve(OP, without, replace(policy(prefer=VENDOR), prefer_is_users=True)).sglang_first is not None


def test_what_was_measured_to_be_fast_runs():
    assert resolve(OP, measured(replace(MEASURED, is_default=True)), policy()).sglang_first is None


def test_the_step_sglang_leaves_the_op_to_sglang():
    resolution = resolve(OP, registry(OWN, NATIVE), policy("sglang|flagos"))
    assert (ids(resolution), resolution.sglang_first) == ([], "asked for by SGLANG_FL_PER_OP")


def test_sglang_preferred_leaves_every_op_to_sglang_but_those_with_an_order():
    prefers = policy(prefer="sglang")
    resolution = resolve(OP, registry(OWN, NATIVE), prefers)
    assert (ids(resolution), resolution.sglang_first) == ([], "asked for by SGLANG_FL_PREFER")
    named = resolve(OP, registry(OWN, NATIVE), policy("flagos", prefer="sglang"))
    assert (ids(named), named.sglang_first) == (["flagos"], None)
    own = resolve(OP, registry(OWN, NATIVE), policy("sglang", prefer="sglang"))
    assert own.sglang_first == "asked for by SGLANG_FL_PER_OP"


def test_what_comes_after_the_step_sglang_is_not_tried():
    resolution = resolve(OP, registry(OWN, NATIVE), policy("flagos|sglang|reference"))
    assert (ids(resolution), resolution.sglang_first) == (["flagos"], None)
    assert resolution.then_sglang


FUSED = OPS["qk_norm_rope"]
OWN_FUSED = OpImpl("qk_norm_rope", FLAGOS, "flagos", "no_such_package.kernels:qk_norm_rope")


def test_a_reference_does_not_stand_for_layers_that_have_ops_unless_it_is_asked_for():
    parts = "rms_norm, rotary_embedding"
    left = resolve(FUSED, registry(), policy()).sglang_first
    assert left == f"its parts are layers of SGLang, which have ops of their own: {parts}"
    for asked in (
        Policy(FLAGOS, {"qk_norm_rope": parse_order("reference")}),
        replace(policy(prefer=REFERENCE), prefer_is_users=True),
    ):
        assert resolve(FUSED, registry(), asked).sglang_first is None
    assert resolve(FUSED, registry(OWN_FUSED), policy()).sglang_first is None


def test_an_order_for_a_part_keeps_it_a_layer_of_its_own_unless_the_whole_has_one_too():
    orders = {"rms_norm": parse_order("reference")}
    left = resolve(FUSED, registry(OWN_FUSED), Policy(FLAGOS, orders)).sglang_first
    assert left == "SGLANG_FL_PER_OP names rms_norm, which is a part of it"
    both = Policy(FLAGOS, {**orders, "qk_norm_rope": parse_order("flagos")})
    assert resolve(FUSED, registry(OWN_FUSED), both).sglang_first is None
