"""Doctor, where the dispatch log is empty: installation, SGLang's selectors, settings, the log's file."""

import importlib
import os
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

import sglang_fl
from doctor_rows import Doctor, only_problem
from sglang_fl.diagnostics.doctor import Launch, State, examine, sglang_release
from sglang_fl.diagnostics.doctor.child import Child

pytestmark = pytest.mark.usefixtures("forked")

Install = Callable[..., str]


def test_source_that_is_only_on_the_path_is_found(doctor: Doctor, tmp_path: Path, monkeypatch):
    """Leave on the path only copies without metadata: the same code, as PYTHONPATH shows it."""
    source = tmp_path / "src"
    source.mkdir()
    (source / "sglang_fl").symlink_to(Path(sglang_fl.__file__).parent)
    has_metadata = {str(found.locate_file("")) for found in metadata.distributions(name="sglang-fl-core")}
    monkeypatch.setattr(sys, "path", [str(source), *(p for p in sys.path if p not in has_metadata)])
    row = only_problem(doctor("--only", "installation", "--only", "entry-points"), "sglang-fl-core")
    assert "not installed in" in row["text"]
    assert "-m pip install sglang-fl-core" in row["remedy"]


def test_core_that_is_installed_is_well(doctor: Doctor):
    code, rows = doctor("--only", "installation", "--only", "entry-points", "--only", "selection")
    assert code == 0, rows
    assert sglang_fl.__version__ in rows["sglang-fl-core"]["text"]
    assert rows["entry points"]["state"] == "ok"


def test_missing_entry_points_are_found(doctor: Doctor, site: Path, metadata_of, monkeypatch):
    """Install core's metadata without its entry points in front: the first of a name counts."""
    metadata_of("sglang-fl-core", sglang_fl.__version__)
    row = only_problem(doctor("--only", "entry-points"), "entry points")
    assert "sglang.srt.plugins, sglang.srt.platforms, sglang_fl.vendors" in row["text"]
    assert "--force-reinstall" in row["remedy"]


@pytest.mark.parametrize("plugins", ["__none__", "another,third", "sglang_fl2"])
def test_filter_that_keeps_the_plugin_out_is_found(doctor: Doctor, monkeypatch, plugins: str):
    monkeypatch.setenv("SGLANG_PLUGINS", plugins)
    row = only_problem(doctor("--only", "selection"), "SGLANG_PLUGINS")
    assert repr(plugins) in row["text"]
    assert "add sglang_fl to it" in row["remedy"]


def test_filter_that_names_the_plugin_is_well(doctor: Doctor, monkeypatch):
    monkeypatch.setenv("SGLANG_PLUGINS", "another, sglang_fl")
    assert doctor("--only", "selection")[0] == 0


def test_platform_that_drops_the_plugin_is_found(doctor: Doctor, monkeypatch):
    monkeypatch.setenv("SGLANG_PLATFORM", "another")
    row = only_problem(doctor("--only", "selection"), "SGLANG_PLATFORM")
    assert "drop this plugin" in row["text"]
    assert "SGLANG_FL_PLATFORM" in row["remedy"]


def test_platform_of_ours_where_sglang_has_its_own_is_found(
    doctor: Doctor, install_vendor: Install, monkeypatch
):
    monkeypatch.setenv("SGLANG_PLATFORM", "sglang_fl")
    assert doctor("--only", "selection")[0] == 0  # on a plain CPU we bring it
    install_vendor("toy")
    assert "is refused" in only_problem(doctor("--only", "selection"), "SGLANG_PLATFORM")["text"]


@pytest.mark.parametrize(
    ("version", "text"), [("0.5.99", "0.5.99 is not supported"), ("0.4.1", "0.4.1 is not supported")]
)
def test_other_release_of_sglang_is_found(doctor: Doctor, metadata_of, version: str, text: str):
    metadata_of("sglang", version)
    row = only_problem(doctor("--only", "sglang-release"), "sglang")
    assert text in row["text"]
    assert "install one of 0.5.15 to " in row["remedy"]


def test_missing_sglang_is_found(doctor: Doctor, monkeypatch):
    has_metadata = {str(found.locate_file("")) for found in metadata.distributions(name="sglang")}
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in has_metadata])
    importlib.invalidate_caches()
    row = only_problem(doctor("--only", "sglang-release"), "sglang")
    assert row["text"] == "not installed in this Python"
    assert row["remedy"].startswith("install sglang 0.5.15")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import no_such_part_of_torch", "No module named 'no_such_part_of_torch'"),
        ("raise OSError('libcudart.so.12: cannot open shared object file')", "libcudart.so.12"),
    ],
)
def test_sglang_that_cannot_be_imported_is_found(
    doctor: Doctor, site: Path, metadata_of, monkeypatch, source: str, text: str
):
    metadata_of("sglang", "0.5.23")
    (site / "sglang").mkdir()
    (site / "sglang" / "__init__.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *sys.path]))
    row = only_problem(doctor("--only", "sglang-loads-the-plugin"), "loading")
    assert "SGLang cannot be imported" in row["text"]
    assert text in row["text"]
    assert "pip check" in row["remedy"]


def test_sglang_that_does_not_call_the_plugin_is_found(doctor: Doctor, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("SGLANG_PLUGINS", "another")
    row = only_problem(doctor("--only", "sglang-loads-the-plugin"), "loading")
    assert "does not call the plugin" in row["text"]


def test_setting_that_a_start_would_refuse_is_found(doctor: Doctor, monkeypatch):
    monkeypatch.setenv("SGLANG_FL_PREFER", "flagso")
    row = only_problem(doctor("--only", "settings", "--only", "layer-2"), "settings")
    assert "SGLANG_FL_PREFER='flagso'" in row["text"]


def test_misspelt_variable_is_found(doctor: Doctor, monkeypatch):
    monkeypatch.setenv("SGLANG_FL_DISPATCH_LGO", "/tmp/x")
    assert doctor("--only", "settings")[0] == 1
    told = examine(Launch(), ["settings"], print)[0].finding
    assert told.state is State.PROBLEM
    assert "Nearest: SGLANG_FL_DISPATCH_LOG" in told.text


def test_vendor_package_that_is_broken_is_found(doctor: Doctor, install: Install):
    install("broken", "import no_such_kernel_library\n")
    row = only_problem(doctor("--only", "vendors"), "vendor broken")
    assert "No module named 'no_such_kernel_library'" in row["text"]
    assert "sglang-fl-broken" in row["remedy"]


@pytest.mark.parametrize(("platform", "state"), [(None, "problem"), ("cpu", "ok")])
def test_unused_package_is_no_problem_where_the_user_chose_another(
    doctor: Doctor, install_vendor: Install, monkeypatch, platform: str | None, state: str
):
    install_vendor("far", probe="return 'no /dev/far0'")
    if platform:
        monkeypatch.setenv("SGLANG_FL_PLATFORM", platform)
    assert doctor("--only", "vendors")[1]["vendor far"]["state"] == state


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("sglang_fl.ops.rms_norm:rms_nrom", "defines no function rms_nrom"),
        ("no_such_package:rms_norm", "there is no module no_such_package"),
        ("sglang_fl.ops.silu_and_mul:silu_and_mul", "the contract says"),
    ],
)
def test_target_that_does_not_exist_or_fit_is_found(
    doctor: Doctor, install_vendor: Install, target: str, text: str
):
    install_vendor(
        "far", probe="return 'gone'", impls=f'OpImpl("rms_norm", VENDOR, "vendor.far", "{target}"),'
    )
    row = only_problem(doctor("--only", "targets"), "target of rms_norm vendor.far")
    assert text in row["text"]
    assert row["remedy"] == "correct it in the package sglang-fl-far"


def test_chip_that_is_not_seen_is_found(doctor: Doctor, install_vendor: Install):
    install_vendor("far", probe="return 'no /dev/far0'")
    assert "no /dev/far0" in only_problem(doctor("--only", "vendors"), "vendor far")["text"]


@pytest.mark.parametrize(
    ("name", "text", "seen", "remedy"),
    [
        ("SGLANG_FL_OOT_ENABLED", "0", "SGLANG_FL_OOT_ENABLED=0 switches it off", "unset it"),
        ("SGLANG_FORCE_FUSED_OP_BACKEND", "torch", "takes layers from the plugin", "unset it"),
    ],
)
def test_layer_2_that_is_off_is_found(
    doctor: Doctor, monkeypatch, tmp_path: Path, name: str, text: str, seen: str, remedy: str
):
    monkeypatch.setenv(name, text)
    monkeypatch.setenv("SGLANG_FL_DISPATCH_LOG", str(tmp_path / "dispatch.log"))
    told = [
        row.finding for row in examine(Launch(), ["layer-2"], print) if row.finding.state is State.PROBLEM
    ]
    assert len(told) == 1
    assert seen in told[0].text
    assert remedy in told[0].remedy


def test_layer_2_that_is_off_is_well_where_no_log_is_asked_for(doctor: Doctor, monkeypatch):
    monkeypatch.setenv("SGLANG_FL_OOT_ENABLED", "0")
    code, rows = doctor("--only", "layer-2")
    assert (code, "SGLANG_FL_OOT_ENABLED=0" in rows["layer 2"]["text"]) == (0, True)


@pytest.mark.parametrize("path", ["/no/such/folder/dispatch.log", "/proc/dispatch.log", "/"])
def test_dispatch_log_that_cannot_be_written_is_found(doctor: Doctor, monkeypatch, path: str):
    monkeypatch.setenv("SGLANG_FL_DISPATCH_LOG", path)
    row = only_problem(doctor("--only", "dispatch-log"), "dispatch log")
    assert f"SGLANG_FL_DISPATCH_LOG='{path}' cannot be written" in row["text"]
    assert "writable folder" in row["remedy"]


@pytest.mark.parametrize("name", ["/proc/calls", "file", "file/calls"])
def test_folder_in_which_no_calls_can_be_kept_is_found(
    doctor: Doctor, monkeypatch, tmp_path: Path, name: str
):
    (tmp_path / "file").touch()
    path = str(tmp_path / name)
    monkeypatch.setenv("SGLANG_FL_KEEP_CALLS", path)
    row = only_problem(doctor("--only", "kept-calls"), "kept calls")
    assert f"SGLANG_FL_KEEP_CALLS='{path}' cannot be written" in row["text"]


def test_folder_in_which_calls_can_be_kept_is_well_and_not_made(doctor: Doctor, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("SGLANG_FL_KEEP_CALLS", str(tmp_path / "a" / "b"))
    assert doctor("--only", "kept-calls")[0] == 0
    assert list(tmp_path.iterdir()) == []


def test_looking_at_the_dispatch_log_leaves_it_as_it_was(doctor: Doctor, monkeypatch, tmp_path: Path):
    log = tmp_path / "dispatch.log"
    monkeypatch.setenv("SGLANG_FL_DISPATCH_LOG", str(log))
    assert doctor("--only", "dispatch-log")[0] == 0
    assert not log.exists()
    log.touch()
    assert "empty so far" in doctor("--only", "dispatch-log")[1]["dispatch log"]["text"]
    log.write_text("a line\n")
    assert doctor("--only", "dispatch-log")[1]["dispatch log"]["text"].endswith("can be written")
    assert log.read_text() == "a line\n"


OTHER = "[sglang.srt.plugins]\nsglang_fl = other:load\n[sglang.srt.platforms]\nsglang_fl = other:activate\n"


@pytest.mark.parametrize("is_behind", [False, True])
def test_a_second_package_of_our_name_is_found_and_whose_counts(
    doctor: Doctor, site: Path, metadata_of, monkeypatch, is_behind: bool
):
    metadata_of("sglang_fl", "0.1.0")
    (site / "sglang_fl-0.1.0.dist-info" / "entry_points.txt").write_text(OTHER)
    if is_behind:
        monkeypatch.setattr(sys, "path", [*(path for path in sys.path if path != str(site)), str(site)])
    row = only_problem(doctor("--only", "entry-points"), "entry points")
    assert "sglang_fl 0.1.0" in row["text"]
    assert f"sglang-fl-core {sglang_fl.__version__}" in row["text"]
    winner = "sglang_fl 0.1.0" if is_behind else "sglang-fl-core"
    assert f"SGLang takes that of {winner}" in row["text"]
    assert "uninstall" in row["remedy"]


def test_a_second_platform_is_named_with_what_to_do(doctor: Doctor, site: Path, metadata_of, monkeypatch):
    metadata_of("toy-platform", "0.1")
    info = site / "toy_platform-0.1.dist-info"
    info.joinpath("entry_points.txt").write_text("[sglang.srt.platforms]\ntoy = toy:activate\n")
    _, rows = doctor("--only", "selection")
    (row,) = rows.values()
    assert "toy-platform brings a platform too" in row["text"]
    error = "RuntimeError: Multiple platform plugins activated: toy, sglang_fl. Set SGLANG_PLATFORM to one."
    monkeypatch.setattr(sglang_release, "run_python", lambda *_: Child(1, "", error))
    metadata_of("sglang", "0.5.23")
    row = only_problem(doctor("--only", "sglang-loads-the-plugin"), "loading")
    assert row["remedy"] == "set SGLANG_PLATFORM=sglang_fl, or uninstall toy-platform"


def test_packages_that_the_chosen_platform_passes_over_are_no_problem(
    doctor: Doctor, install_vendor: Install, monkeypatch
):
    install_vendor("far", probe="return 'no device'")
    monkeypatch.setenv("SGLANG_FL_PLATFORM", "cpu")
    code, rows = doctor("--only", "vendors")
    assert code == 0
    assert rows["vendor far"]["text"] == "not used (SGLANG_FL_PLATFORM='cpu'): no device"
