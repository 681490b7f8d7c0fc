"""From measurements to choices: what ``sglang-fl tune`` proposes, what an engine confirms, what stays."""

import math

import pytest
import yaml

from sglang_fl.tune.aten_decide import KERNEL, PYTORCH, change_list
from sglang_fl.tune.decide import Compared, Judged, Measured, OpVerdict, Timed, compare_engines, decide_op
from sglang_fl.tune.figures import Ratio, of_starts, of_times, together
from sglang_fl.tune.sides import CONTROL, PRESENT, Alternative, alternatives, decide_engines, order_of
from sglang_fl.tune.text import Report, as_package_data, as_yaml

RIGHT = Judged("right")
#: Throughputs of one start: repetitions that differ by a thousandth.
STEADY = (1.0, 1.001, 0.999, 1.0, 1.0)


def times(microseconds: float) -> list[float]:
    return [microseconds * factor for factor in STEADY]


def start(decode: float, prefill: float) -> dict[str, list[float]]:
    return {"decode": times(decode), "prefill": times(prefill)}


def test_a_ratio_is_that_of_times_measured_in_turn():
    ratio = of_times(times(10), times(5))
    assert ratio.value == pytest.approx(2, rel=0.01)
    assert ratio.is_faster
    assert not ratio.is_slower
    assert of_times([10, 20, 40], [5, 10, 20]) == Ratio(2, 0)  # a host that slows down changes both


def test_one_time_tells_nothing():
    ratio = of_times([10], [1])
    assert math.isinf(ratio.error)
    assert not ratio.is_faster


def test_twice_as_fast_and_half_as_fast_are_equally_far_from_one():
    assert Ratio(8, 5.5).is_faster
    assert Ratio(1 / 8, 5.5 / 64).is_slower
    assert not Ratio(2, 1.5).is_faster
    assert not Ratio(0.5, 1.5 / 4).is_slower


def test_ratios_of_several_calls_make_their_geometric_mean():
    assert str(Ratio(1013.2, 86.4)) == "1013 ± 86"
    assert together([Ratio(2, 0), Ratio(0.5, 0)]) == Ratio(1, 0)
    assert together([Ratio(2, 0.2), Ratio(2, 0.2)]).error == pytest.approx(0.2 / math.sqrt(2))


def test_starts_that_differ_make_the_error_larger():
    alike = of_starts([times(10), times(10)], [times(11), times(11)])
    apart = of_starts([times(10), times(10)], [times(9), times(13)])
    assert alike.is_faster
    assert apart.value > 1
    assert not apart.is_faster


def measured(present: str, **microseconds: float | str) -> Measured:
    """What was measured of implementations: a number is the time of an exact one, a text what is wrong."""
    judged = {i: RIGHT if isinstance(v, float) else Judged(v, "why") for i, v in microseconds.items()}
    exact = {i: times(v) for i, v in microseconds.items() if isinstance(v, float)}
    return Measured("rms_norm", present, judged, (Timed("x 4x8", "clock", exact),))


def test_the_fastest_exact_implementation_is_proposed():
    verdict = decide_op(measured("slow", slow=100.0, fast=10.0, wrong="wrong", reference=50.0))
    assert verdict.best == "fast"
    assert verdict.gain is not None
    assert verdict.gain.value == pytest.approx(10, rel=0.01)
    assert verdict.others["wrong"] == "wrong: why"
    assert "times the speed of slow" in verdict.others["reference"]
    assert not verdict.is_present_wrong


@pytest.mark.parametrize("state", ["wrong", "raised", "refused", "hangs", "ends its process", "not measured"])
def test_what_is_not_right_is_never_proposed(state: str):
    assert decide_op(measured("slow", slow=100.0, fast=state)).best is None


def test_what_is_faster_by_less_than_its_error_is_not_proposed():
    found = Measured(
        "rms_norm",
        "a",
        {"a": RIGHT, "b": RIGHT},
        (Timed("x", "clock", {"a": [10, 11, 9, 12], "b": [9, 12, 10, 9]}),),
    )
    verdict = decide_op(found)
    assert verdict.best is None
    assert verdict.reason == "no other exact kernel is faster than a by more than its error"


def test_of_two_that_are_alike_the_first_in_the_vendors_order_is_proposed():
    microseconds = {"slow": times(100), "first": [10.05, 9.95, 10, 10.02, 9.99], "second": times(9.999)}
    found = Measured(
        "rms_norm", "slow", dict.fromkeys(microseconds, RIGHT), (Timed("x", "clock", microseconds),)
    )
    assert decide_op(found).best == "first"


def test_the_reference_is_proposed_only_where_no_kernel_is_faster():
    assert decide_op(measured("slow", slow=100.0, kernel=50.0, reference=10.0)).best == "kernel"
    assert decide_op(measured("slow", slow=100.0, kernel=100.0, reference=10.0)).best == "reference"


def test_a_wrong_kernel_that_runs_at_present_is_told_and_replaced_by_nothing():
    verdict = decide_op(measured("wrong", wrong="wrong", fast=10.0))
    assert verdict.best is None
    assert verdict.is_present_wrong
    assert verdict.reason == "wrong, which runs at present, is not exact: wrong: why"


def test_beside_sglangs_own_path_the_fastest_kernel_is_for_the_engine_to_decide():
    verdict = decide_op(measured("sglang", fast=10.0, slow=100.0, reference=1.0))
    assert (verdict.best, verdict.gain) == ("fast", None)
    assert decide_op(measured("sglang", reference=1.0)).best is None


def test_what_was_not_timed_is_not_proposed_and_says_why():
    found = Measured("rms_norm", "a", {"a": RIGHT, "b": RIGHT}, (), "its times could not be taken: why")
    assert decide_op(found) == OpVerdict("rms_norm", "a", None, None, "its times could not be taken: why", {})


def proposed(op: str, present: str, best: str | None, gain: float | None = None) -> OpVerdict:
    return OpVerdict(op, present, best, gain and Ratio(gain, 0.01), "measured")


SILU = proposed("silu_and_mul", "slow", "fast", 2.0)
NORM = proposed("rms_norm", "flagos", None)


def test_kernels_are_tried_together_and_sglangs_own_path_op_by_op():
    first, *others = alternatives([SILU, NORM], with_sglang=True)
    assert first == Alternative("silu_and_mul=fast", {"silu_and_mul": "impl:fast|sglang"})
    assert [side.orders for side in others] == [
        {"silu_and_mul": "sglang"},
        {"silu_and_mul": "impl:fast|sglang", "rms_norm": "sglang"},
    ]
    assert {side.beside for side in others} == {first.name}
    assert alternatives([SILU, NORM], with_sglang=False) == (first,)
    assert alternatives([NORM], with_sglang=False) == ()


def test_a_kernel_in_the_place_of_sglangs_own_path_has_an_engine_of_its_own():
    (side,) = alternatives([proposed("fused_moe", "sglang", "flagos")], with_sglang=False)
    assert side == Alternative("fused_moe=flagos", {"fused_moe": "impl:flagos|sglang"}, PRESENT, "fused_moe")


def test_layer_1_is_tried_as_a_whole_on_top_of_the_kernels():
    *_, side = alternatives([SILU], with_sglang=False, with_layer_1=True)
    assert side.orders == {"silu_and_mul": "impl:fast|sglang", "use_flaggems": "0"}
    assert (side.beside, side.op) == ("silu_and_mul=fast", "use_flaggems")
    written = yaml.safe_load(as_yaml(Report({}, (), {}, orders=side.orders, kept={"use_flaggems": "1"})))
    assert written == {"use_flaggems": "0", "op_backends": {"silu_and_mul": "impl:fast|sglang"}}


def aten(op: str, present: str, best: str | None) -> OpVerdict:
    return OpVerdict(f"aten::{op}", present, best, None, "")


def test_proposals_of_aten_ops_make_one_list_with_what_is_replaced_at_present():
    verdicts = [
        aten("mul.Tensor", PYTORCH, KERNEL),
        aten("neg.default", KERNEL, PYTORCH),
        aten("add.Tensor", KERNEL, None),
        aten("sub.Tensor", PYTORCH, None),
    ]
    replaced = ("aten::add.Tensor", "aten::neg.default", "aten::exp.default")
    change = change_list(verdicts, replaced, ("lt",))
    assert change is not None
    assert change.order == "aten::add.Tensor,aten::exp.default,aten::mul.Tensor,!lt"
    assert (change.added, change.removed) == (("aten::mul.Tensor",), ("aten::neg.default",))
    assert str(change) == "ATen ops +mul.Tensor -neg.default"
    assert change_list(verdicts[2:], replaced, ()) is None


def test_a_list_with_nothing_on_it_is_layer_1_off():
    change = change_list([aten("neg.default", KERNEL, PYTORCH)], ["aten::neg.default"], ())
    assert change is not None
    assert change.order == "0"
    assert [side.orders for side in alternatives([], True, True, change)] == [{"use_flaggems": "0"}]


def test_a_list_of_aten_ops_is_tried_on_top_of_the_kernels_and_before_all_of_pytorchs():
    verdicts = [OpVerdict("rms_norm", "a", "b", Ratio(2, 0.1), "")]
    change = change_list([aten("mul.Tensor", PYTORCH, KERNEL)], [], ())
    first, listed, off = alternatives(verdicts, False, True, change)
    assert first.orders == {"rms_norm": "impl:b|sglang"}
    assert listed.orders == {"rms_norm": "impl:b|sglang", "use_flaggems": "aten::mul.Tensor"}
    assert (listed.name, listed.beside) == ("rms_norm=b;ATen ops +mul.Tensor", "rms_norm=b")
    assert listed.added == ("aten::mul.Tensor",)
    assert (off.orders["use_flaggems"], off.beside) == ("0", "rms_norm=b")


@pytest.mark.parametrize(
    ("listed", "off", "order"), [(1.3, 1.1, "aten::x.y"), (1.1, 1.3, "0"), (1.0, 1.2, "0"), (1.0, 1.0, None)]
)
def test_of_a_list_and_all_of_pytorchs_the_faster_one_is_chosen(listed: float, off: float, order: str | None):
    change = change_list([aten("x.y", PYTORCH, KERNEL)], [], ())
    tried = alternatives([], False, True, change)
    speeds = {PRESENT: 1.0, CONTROL: 1.0, tried[0].name: listed, tried[1].name: off}
    outcome = decide_engines(tried, {name: [start(10 * x, 10 * x)] for name, x in speeds.items()})
    assert outcome.orders == ({"use_flaggems": order} if order else {})
    assert (outcome.whole is not None) == (order is not None)


def test_the_file_has_the_list_with_a_reason_for_each_and_for_what_stays():
    gain = Ratio(2, 0.1)
    timed = OpVerdict("aten::mul.Tensor", PYTORCH, KERNEL, gain, "2 times the speed", {}, gain)
    verdicts = [timed, aten("neg.default", KERNEL, PYTORCH), aten("sub.Tensor", PYTORCH, None)]
    report = Report(
        {},
        verdicts,
        {"aten::mul.Tensor": 3},
        orders={"use_flaggems": "aten::exp.default,aten::mul.Tensor,!lt"},
        kept={"prefer": "vendor", "flagos_blacklist": ["sub"], "use_flaggems": "0"},
    )
    text = as_yaml(report)
    assert yaml.safe_load(text) == {
        "prefer": "vendor",
        "use_flaggems": "1",
        "flagos_whitelist": ["aten::exp.default", "aten::mul.Tensor", "!lt"],
    }
    assert '  # 2 times the speed (recorded calls: 3)\n  - "aten::mul.Tensor"\n' in text
    assert "# These are PyTorch's again:\n# aten::neg.default on pytorch:\n" in text
    assert "# These stay as they are:\n# aten::sub.Tensor on pytorch:\n" in text
    assert 'no call of the model was recorded\n  - "aten::exp.default"' in text
    entry = '("mul.Tensor",),\n        is_replaced=True,\n        reason="2 times the speed'
    assert entry in as_package_data(report)


def test_an_op_that_stands_for_others_stays_on_where_one_of_these_is_named():
    whole = proposed("qk_norm_rope", "flagos", None)
    (side,) = alternatives([whole, proposed("rms_norm", "slow", "fast", 2.0)], with_sglang=False)
    assert side.orders == {"qk_norm_rope": "impl:flagos|sglang", "rms_norm": "impl:fast|sglang"}
    off = proposed("qk_norm_rope", "sglang", None)
    (side,) = alternatives([off, proposed("rms_norm", "slow", "fast", 2.0)], with_sglang=False)
    assert side.orders == {"rms_norm": "impl:fast|sglang"}


def test_sglangs_own_path_stands_alone_in_an_order():
    assert order_of("sglang") == "sglang"


KERNELS = Alternative("silu=fast", {"silu_and_mul": "impl:fast|sglang"})
OWN = Alternative(
    "norm=sglang", {"silu_and_mul": "impl:fast|sglang", "rms_norm": "sglang"}, KERNELS.name, "rms_norm"
)
SAME = {PRESENT: [start(100, 100)], CONTROL: [start(100.1, 99.9)]}


@pytest.mark.parametrize(
    ("decode", "prefill", "is_confirmed"),
    [(120, 100, True), (120, 110, True), (120, 90, False), (100, 100, False), (80, 100, False)],
    ids=["decode", "both", "prefill is slower", "alike", "slower"],
)
def test_an_engine_confirms_what_is_faster_in_one_workload_and_slower_in_none(decode, prefill, is_confirmed):
    outcome = decide_engines([KERNELS], {**SAME, KERNELS.name: [start(decode, prefill)]})
    assert outcome.orders == (KERNELS.orders if is_confirmed else {})
    assert (outcome.whole is not None) == is_confirmed


def test_what_may_be_slower_by_a_few_percent_is_not_confirmed_whatever_the_error_is():
    noisy = {"decode": times(200), "prefill": [90, 60, 95, 140, 94]}
    outcome = decide_engines([KERNELS], {**SAME, KERNELS.name: [noisy]})
    assert outcome.compared[KERNELS.name].ratios["prefill"].error > 0.1
    assert outcome.orders == {}


def test_a_control_that_differs_from_itself_confirms_nothing_that_differs_less():
    control = {PRESENT: [start(100, 100)], CONTROL: [start(125, 100)]}
    outcome = decide_engines([KERNELS], {**control, KERNELS.name: [start(120, 100)]})
    assert outcome.orders == {}
    assert outcome.compared[KERNELS.name].ratios["decode"].error == pytest.approx(0.3, abs=0.01)


def test_what_was_tried_on_top_of_the_kernels_is_compared_with_them_and_with_the_present_choice():
    starts = {**SAME, KERNELS.name: [start(120, 100)], OWN.name: [start(150, 100)]}
    outcome = decide_engines([KERNELS, OWN], starts)
    assert outcome.orders == OWN.orders
    assert outcome.compared[OWN.name].ratios["decode"].value == pytest.approx(1.25, abs=0.01)
    assert outcome.whole is not None
    assert outcome.whole.ratios["decode"].value == pytest.approx(1.5, abs=0.01)


def test_what_was_tried_on_top_of_kernels_that_are_not_confirmed_counts_for_nothing():
    starts = {**SAME, KERNELS.name: [start(90, 100)], OWN.name: [start(150, 100)]}
    assert decide_engines([KERNELS, OWN], starts).orders == {}


def test_parts_that_were_confirmed_apart_are_no_whole_yet():
    one = Alternative("a", {"rms_norm": "sglang"}, PRESENT, "rms_norm")
    two = Alternative("b", {"silu_and_mul": "sglang"}, PRESENT, "silu_and_mul")
    outcome = decide_engines([one, two], {**SAME, "a": [start(120, 100)], "b": [start(120, 100)]})
    assert outcome.orders == {"rms_norm": "sglang", "silu_and_mul": "sglang"}
    assert outcome.whole is None


def test_an_engine_that_never_ran_is_left_out():
    outcome = decide_engines([KERNELS, OWN], {**SAME, KERNELS.name: [], OWN.name: [start(150, 100)]})
    assert (outcome.orders, dict(outcome.compared)) == ({}, {})


def test_rounds_that_one_of_two_engines_lacks_do_not_count():
    starts = {**SAME, KERNELS.name: [start(120, 100), start(120, 100)]}
    assert decide_engines([KERNELS], starts).orders == KERNELS.orders


def test_a_comparison_reads_as_a_sentence():
    found = compare_engines([start(100, 100)], [start(120, 100)])
    assert isinstance(found, Compared)
    assert str(found).startswith("decode 1.2 ± 0.00")
