"""The table of SGLang's releases: what a new row brings, and how versions compare."""

import ast
import sys
from pathlib import Path

import pytest
from packaging.version import Version

from sglang_fl.diagnostics import report
from sglang_fl.sglang_adapter import releases, seams
from sglang_fl.sglang_adapter.kernel_faults import KERNEL_FAULTS
from sglang_fl.sglang_adapter.releases import EVERY_RELEASE, RELEASES, Range, Release
from sglang_fl.sglang_adapter.shortcuts import DIRECT_CALLS, SHORTCUTS

NEWEST = releases.newest()
LATER = ("0.5.24", "0.6.0")
_TWO_RELEASES = (
    "layers.moe.qwen35_flashinfer_fusion.Qwen35FlashInferFusionService.all_reduce_residual_rms_norm"
)


@pytest.fixture(params=[1, 2], ids=["with-0.5.24", "with-0.6.0-too"])
def added(request, monkeypatch: pytest.MonkeyPatch) -> list[Version]:
    """The table with rows for releases to come; what was added."""
    rows = tuple(Release(version, torch="2.15") for version in LATER[: request.param])
    monkeypatch.setattr(releases, "RELEASES", RELEASES + rows)
    return [Version(row.version) for row in rows]


def in_force(version: Version) -> list[str]:
    """Return where SGLang passes over layers in a release."""
    shortcuts = [shortcut.target for shortcut in SHORTCUTS if version in shortcut.releases]
    return shortcuts + [f"{call.owner} {call.op}" for call in DIRECT_CALLS if version in call.releases]


def test_a_row_brings_the_facts_of_the_release_before(added: list[Version]):
    for version in added:
        assert seams.seam_of(version) == seams.seam_of(NEWEST)
        assert seams.routes_padded_tokens(version)
        assert version in releases.FORCED_BACKEND
        assert version not in releases.PIECEWISE_FLAG
        assert in_force(NEWEST)
        assert set(in_force(NEWEST)) <= set(in_force(version))


def test_a_row_changes_nothing_for_the_releases_before(added: list[Version]):
    for release in RELEASES:
        version = Version(release.version)
        assert seams.seam_of(version).target == releases.seam_path(version)
        assert (version in releases.FORCED_BACKEND) == (version >= Version("0.5.18"))
        assert (version in releases.PADDED_TOKENS) == (version >= Version("0.5.17"))
        assert (version in releases.PIECEWISE_FLAG) == (version <= Version("0.5.19"))


def test_each_switch_of_a_shortcut_holds_for_a_row_that_is_added(added: list[Version]):
    for version in added:
        for shortcut in (known for known in SHORTCUTS if known.switches):
            has_switch = sum(version in switch.releases for switch in shortcut.switches)
            assert has_switch == (version in shortcut.releases)


def test_every_text_names_the_row_that_was_added(added: list[Version], monkeypatch: pytest.MonkeyPatch):
    newest = added[-1]
    assert releases.supported_range() == f"0.5.15 to {newest}"
    assert seams.why_unsupported(Version("0.7.0")).endswith(f"(0.5.15 to {newest} are)")
    rows = {row["where"]: row["releases"] for row in report._shortcuts()}
    assert rows["layers.dual_gemm.DualGemm.__call__"] == f"0.5.22 to {newest}"
    assert rows["models.utils.apply_qk_norm"] == f"0.5.15 to {newest}"
    assert rows[_TWO_RELEASES] == "0.5.19 to 0.5.20"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Exception, match=f"Install sglang 0.5.15 to {newest}"):
        report.coverage()


def test_the_engine_is_tried_on_the_newest_row_and_on_each_representative(added: list[Version]):
    assert releases.representatives() == ["0.5.17", "0.5.20", str(added[-1])]


def test_doctor_and_plugin_know_a_row_that_was_added(added: list[Version], monkeypatch: pytest.MonkeyPatch):
    from sglang_fl.diagnostics.doctor import sglang_release
    from sglang_fl.diagnostics.doctor.launch import Launch

    answers = []
    for version in (*added, "0.7.0"):
        monkeypatch.setattr(sglang_release.metadata, "version", lambda name, version=version: str(version))
        answers += [str(row.state) for row in sglang_release.sglang_release(Launch()) if row.what == "sglang"]
    assert answers == ["ok"] * len(added) + ["problem"]


@pytest.mark.parametrize("version", [*LATER, "1.0", "0.5.14", "0.4.20"])
def test_a_release_without_a_row_has_no_fact(version: str):
    unknown = Version(version)
    assert seams.seam_of(unknown) is None
    assert unknown not in EVERY_RELEASE
    assert in_force(unknown) == []
    assert f"SGLang {version} is not supported" in seams.why_unsupported(unknown)


def test_versions_compare_as_versions(added: list[Version]):
    assert Version("0.5.9") not in EVERY_RELEASE  # a larger last part than none, and an older release
    assert Version("0.6.0") not in Range("0.5.18", "0.5.20")
    if Version("0.6.0") in added:
        assert Version("0.6.0") in Range("0.5.23")  # its last part is smaller


@pytest.mark.parametrize("suffix", [".post1", "rc2", ".dev3+g0123456"])
def test_a_version_has_the_facts_of_its_release(suffix: str):
    for release in RELEASES:
        version = Version(release.version + suffix)
        assert seams.seam_of(version) == seams.seam_of(Version(release.version))
        assert in_force(version) == in_force(Version(release.version))


@pytest.mark.parametrize(
    ("range_", "text"),
    [
        (Range(last="0.5.17"), "0.5.15 to 0.5.17"),
        (Range("0.5.21", "0.5.21"), "0.5.21"),
        (Range("0.5.18"), f"0.5.18 to {NEWEST}"),
    ],
)
def test_a_range_names_its_ends(range_: Range, text: str):
    assert str(range_) == text


def test_rows_are_ordered_and_each_release_has_one_seam():
    versions = [Version(release.version) for release in RELEASES]
    assert versions == sorted(set(versions))
    for version in versions:
        assert [version in found for found in releases.LAYER_2_SEAMS.values()].count(True) == 1


def test_each_fault_is_of_a_shortcut_that_can_be_turned_off_in_these_releases():
    for fault in KERNEL_FAULTS:
        (shortcut,) = (known for known in SHORTCUTS if known.target == fault.target)
        assert shortcut.name == fault.shortcut
        for release in (Version(row.version) for row in RELEASES):
            if release in fault.releases:
                assert any(release in switch.releases for switch in shortcut.switches)


def test_the_table_can_be_read_where_nothing_of_ours_is_installed():
    tree = ast.parse(Path(releases.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names) == {"packaging"}
