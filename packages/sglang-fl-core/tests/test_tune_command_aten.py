"""``sglang-fl tune``: the choice of ATen ops, and its list in the file."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import tuned_machine
from sglang_fl.aten import plan_layer_1
from sglang_fl.startup import configure
from sglang_fl.tune import procedure
from sglang_fl.vendor import AtenChoice
from tuned_machine import ATEN_VENDOR, IMPLS, TIMES, Machine, tune, written

#: A fixture.
pretended = tuned_machine.pretended


@pytest.fixture
def aten(pretended: Machine, install: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The machine with a vendor ``chip`` of ATen kernels alone, and ``both`` of the other ops, too."""
    install("chip", ATEN_VENDOR.replace('"toy"', '"chip"'))
    ops = IMPLS.replace("vendor.toy", "vendor.both")
    install("both", ATEN_VENDOR.replace('"toy"', '"both"').replace("impls=()", f"impls=({ops})"))
    monkeypatch.setenv("SGLANG_FL_PLATFORM", "chip")
    return pretended


LISTED = ["aten::exp.default", "aten::neg.default", "aten::mul.Tensor"]


def test_aten_ops_that_are_exact_and_faster_are_listed_and_a_slow_one_is_given_back(
    aten: Machine, fits: Callable[[str, object], None]
):
    output = tune("--kernels-only", "--json-file", "result.json", "--as-package-data")
    assert written() == {"use_flaggems": "1", "flagos_whitelist": LISTED}
    assert aten.measured == [
        "aten::neg.default",
        "aten::mul.Tensor",
        "aten::abs.default",
        "aten::cos.default",
    ]
    assert aten.started == ["ATen ops", *aten.started[1:]]
    assert sorted(set(aten.started[1:])) == [",".join(LISTED), "present"]
    told = " ".join(Path("sglang-fl-tuned.yaml").read_text().replace("#", " ").split())
    assert re.search(
        r"5 ± \S+ times the speed of PyTorch's \(recorded calls: 1\) - \"aten::neg.default\"", told
    )
    assert "These are PyTorch's again: aten::abs.default on pytorch: 0.333 ±" in told
    assert "aten::cos.default on pytorch: the kernel is not exact; kernel: wrong: by far" in told
    assert "engine ATen ops +neg.default +mul.Tensor -abs.default, beside present: decode 1.2 ±" in told
    found = json.loads(Path("result.json").read_text())
    fits("tune", found)
    assert {row["op"]: (row["present"], row["chosen"]) for row in found["ops"]} == {
        "aten::neg.default": ("pytorch", "kernel"),
        "aten::mul.Tensor": ("pytorch", "kernel"),
        "aten::abs.default": ("kernel", "pytorch"),
        "aten::cos.default": ("pytorch", "pytorch"),
    }
    assert (found["layer_1"], found["flagos_whitelist"]) == ("listed", LISTED)
    entries = output[output.index("aten_choices = (") : output.index("# quarantine")]
    made = eval(entries.removeprefix("aten_choices = "), {"AtenChoice": AtenChoice})
    assert {choice.names: choice.is_replaced for choice in made} == {
        ("neg.default",): True,
        ("mul.Tensor",): True,
        ("abs.default",): False,
    }
    assert "once a reproduction is written: aten::cos.default kernel wrong: by far" in output


def test_ops_and_aten_ops_are_chosen_together(aten: Machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_PLATFORM", "both")
    monkeypatch.setitem(TIMES, "vendor.both", 100.0)
    monkeypatch.setitem(TIMES, "vendor.both.fast", 10.0)
    aten.speeds["vendor.both.fast"] = 1.5
    tune("--kernels-only")
    assert written() == {
        "use_flaggems": "1",
        "flagos_whitelist": LISTED,
        "op_backends": {"silu_and_mul": "impl:vendor.both.fast|sglang"},
    }
    told = " ".join(Path("sglang-fl-tuned.yaml").read_text().replace("#", " ").split())
    assert "In the engine this choice has decode 1.8 ±" in told
    assert list(Path("sglang-fl-tune").glob("*/calls")) == []  # all is measured


def test_a_list_of_aten_ops_serves(aten: Machine, monkeypatch: pytest.MonkeyPatch):
    tune("--kernels-only")
    monkeypatch.setenv("SGLANG_FL_CONFIG", "sglang-fl-tuned.yaml")
    configure.cache_clear()
    plan = plan_layer_1(configure())
    assert [op.exact for op in plan.replaced] == [
        "aten::neg.default",
        "aten::mul.Tensor",
        "aten::exp.default",
    ]


def test_a_list_that_the_engine_does_not_confirm_is_not_written(aten: Machine):
    aten.speeds["aten::neg.default"] = 1.0
    tune("--kernels-only")
    assert written() == {}
    told = " ".join(Path("sglang-fl-tuned.yaml").read_text().replace("#", " ").split())
    assert "kernel was proposed (5 ±" in told
    assert "and the engine did not confirm it" in told


def test_pytorchs_own_for_all_is_tried_beside_the_list(aten: Machine):
    aten.speeds["layer 1 is off"] = 1.4
    tune("--rounds", "1")
    assert written() == {"use_flaggems": "0"}


def test_aten_ops_that_no_engine_was_seen_to_run_are_not_written(aten: Machine):
    aten.aten_ran = {"aten::neg.default"}
    tune("--kernels-only")
    assert written()["flagos_whitelist"] == ["aten::exp.default", "aten::neg.default"]
    told = " ".join(Path("sglang-fl-tuned.yaml").read_text().replace("#", " ").split())
    assert re.search(
        r"aten::mul.Tensor on pytorch: kernel was proposed \(2 ± \S+ .* the engine never called it", told
    )
    aten.aten_ran = set()
    output = tune("--kernels-only", "--force", "--fresh")
    assert written() == {}
    assert "none of aten::neg.default, aten::mul.Tensor ran on the vendor's" in " ".join(output.split())


def test_single_aten_ops_can_be_named_and_what_was_measured_is_kept(aten: Machine):
    tune("--kernels-only", "--op", "mul.Tensor", code=2)
    tune("--kernels-only", "--op", "aten::neg")
    assert aten.measured == ["aten::neg.default"]
    assert written()["flagos_whitelist"] == ["aten::abs.default", "aten::exp.default", "aten::neg.default"]
    started = len(aten.started)
    tune("--kernels-only", "--op", "aten::neg", "--force")
    assert (len(aten.started), aten.measured) == (started, ["aten::neg.default"])


def test_calls_of_aten_ops_that_were_removed_are_recorded_again(aten: Machine):
    tune("--kernels-only", "--op", "aten::neg")
    started = len(aten.started)
    (file,) = Path("sglang-fl-tune").glob("*/state.json")
    state = json.loads(file.read_text())
    file.write_text(json.dumps(state | {"ops": {}}))  # as if it was interrupted before it was measured
    tune("--kernels-only", "--op", "aten::neg", "--force")
    assert aten.started[started:].count("ATen ops") == 1
    assert aten.measured == ["aten::neg.default"] * 2


@pytest.mark.parametrize(
    ("words", "settings", "said"),
    [
        (("--op", "aten::negg"), {}, "replace no ATen op 'aten::negg'. Nearest: aten::neg."),
        (("--op", "aten::sin"), {}, "--op 'aten::sin': it is in quarantine here, or your black list"),
        (("--op", "aten::neg"), {"USE_FLAGGEMS": "0"}, "it stands above the file that tune writes"),
        (("--op", "aten::neg"), {"SGLANG_FL_PLATFORM": "toy"}, "vendor toy has no ATen kernels (layer 1)"),
    ],
)
def test_aten_ops_that_cannot_be_tuned_are_refused(aten: Machine, monkeypatch, words, settings, said):
    for name, text in settings.items():
        monkeypatch.setenv(name, text)
    assert said in " ".join(tune(*words, code=2).split())


def test_aten_ops_against_which_a_setting_stands_are_named(aten: Machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_FLAGOS_WHITELIST", "neg")
    said = "SGLANG_FL_FLAGOS_WHITELIST='neg': it stands above the file that tune writes"
    assert f"nothing to choose. ATen ops: {said}" in " ".join(tune(code=2).split())
    monkeypatch.setenv("SGLANG_FL_PLATFORM", "both")
    monkeypatch.setitem(TIMES, "vendor.both", 100.0)
    assert f"tune: no ATen op is measured: {said}" in " ".join(tune("--kernels-only").split())
    assert (
        "# ATen ops: none is measured: SGLANG_FL_FLAGOS_WHITELIST" in Path("sglang-fl-tuned.yaml").read_text()
    )
    assert "ATen op" not in " ".join(tune("--kernels-only", "--op", "rms_norm", "--force").split())


def test_aten_ops_for_which_the_minutes_do_not_suffice_are_named(aten: Machine, monkeypatch):
    monkeypatch.setattr(procedure, "BESIDE_START", 1000.0)
    monkeypatch.setattr(procedure, "MOST_LEFT", 1.0)
    output = " ".join(tune("--kernels-only", "--minutes", "1", code=3).split())
    names = "aten::neg.default, aten::mul.Tensor, aten::abs.default, aten::cos.default"
    assert f"not measured: {names}: the minutes that the engines leave were over" in output
    assert "aten::neg.default on pytorch: not measured: the minutes" in " ".join(
        Path("sglang-fl-tuned.yaml").read_text().replace("#", " ").split()
    )


def test_the_users_black_list_of_aten_ops_is_kept_to(aten: Machine, monkeypatch: pytest.MonkeyPatch):
    Path("mine.yaml").write_text("flagos_blacklist: [mul, exp]\n")
    monkeypatch.setenv("SGLANG_FL_CONFIG", "mine.yaml")
    tune("--kernels-only")
    assert written() == {"use_flaggems": "1", "flagos_whitelist": ["aten::neg.default"]}
