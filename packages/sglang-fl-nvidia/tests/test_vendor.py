"""The package as core finds it: what every vendor package must keep, and what this one lists."""

import importlib.util
import pkgutil

import pytest

from sglang_fl.conformance.suite import *  # noqa: F403 - the kit's tests, of VENDOR
from sglang_fl.dispatch.resolution import resolve
from sglang_fl.ops import OPS
from sglang_fl.registry import Registry
from sglang_fl.settings.policy import Policy, parse_order
from sglang_fl_nvidia import NVIDIA

VENDOR = NVIDIA


def modules(package: str) -> set[str]:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return {module.name for module in pkgutil.iter_modules(spec.submodule_search_locations)}


def test_every_call_of_flaggems_that_core_has_is_listed():
    listed = {impl.op for impl in NVIDIA.impls if impl.target.startswith("sglang_fl.flagos.")}
    assert listed == modules("sglang_fl.flagos") & OPS.keys()


def test_every_kernel_of_our_own_is_listed_and_comes_first():
    ours = {impl.op for impl in NVIDIA.impls if impl.target.startswith("sglang_fl_nvidia.flagos.")}
    assert ours == modules("sglang_fl_nvidia.flagos") & OPS.keys()
    assert all(next(impl for impl in NVIDIA.impls if impl.op == op).id == "flagos" for op in ours)


def test_every_call_of_sglangs_own_kernels_is_listed():
    listed = {impl.op for impl in NVIDIA.impls if impl.id == "vendor.nvidia"}
    assert listed == modules("sglang_fl_nvidia.vendor") & OPS.keys()


@pytest.mark.parametrize(
    ("asked", "first", "is_sglangs"),
    [
        (Policy(), ["flagos"], False),
        (Policy(per_op={"fused_moe": parse_order("impl:flagos.flag_gems")}), ["flagos.flag_gems"], False),
        (Policy(per_op={"fused_moe": parse_order("sglang")}), [], True),
    ],
    ids=["nothing", "flag_gems", "sglang"],
)
def test_experts_are_ours_unless_the_user_asks_for_others(asked, first, is_sglangs: bool, monkeypatch):
    monkeypatch.setattr("sglang_fl.dispatch.resolution.why_not_installed", lambda impl: None)
    resolution = resolve(OPS["fused_moe"], Registry(NVIDIA, ()), asked)
    assert [impl.id for impl in resolution.candidates[:1]] == first
    assert (resolution.sglang_first is not None) == is_sglangs
