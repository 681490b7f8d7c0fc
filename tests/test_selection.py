"""What ``nox -s changed`` runs for a change."""

from pathlib import Path

import pytest

from tests.selection import BY_OP, ENGINE, LAYOUT, ROOT, SESSIONS, all_tests, select, session_of

CORE = "packages/sglang-fl-core"
SOURCE = f"{CORE}/src/sglang_fl"


def test_nothing_is_run_for_nothing():
    assert select([]) == {}


@pytest.mark.parametrize("path", [*BY_OP, LAYOUT, ENGINE.partition("::")[0]])
def test_what_is_selected_by_name_is_there(path: str):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("test", all_tests(), ids=str)
def test_each_test_file_has_a_session(test: Path):
    assert session_of(str(test.relative_to(ROOT))) in {*SESSIONS.values()}


@pytest.mark.parametrize("place", ["ops", "flagos", "sglang_adapter/layers"])
def test_a_file_of_an_op_runs_the_tests_of_that_op(place: str):
    selected = select([f"{SOURCE}/{place}/rms_norm.py"])
    assert selected.keys() == {"tests", "engine"}
    assert f"{CORE}/tests/test_ops.py" in selected["tests"]
    assert "tests/engine/test_layers.py" in selected["engine"]
    for arguments in selected.values():
        assert arguments[-2:] == ["-k", "rms_norm or test_layout or references_generate"]


def test_a_module_runs_what_imports_it_or_is_named_after_it_and_one_engine():
    selected = select([f"{SOURCE}/dispatch/life.py"])
    assert f"{CORE}/tests/test_life.py" in selected["tests"]
    assert f"{CORE}/tests/test_isolation.py" in selected["tests"]  # imports it
    assert f"{CORE}/tests/test_policy.py" not in selected["tests"]
    assert ENGINE in selected["engine"]


def test_what_ops_share_runs_the_tests_of_every_op():
    selected = select(["tests/ops/shared/drawing.py"])
    assert "tests/engine/test_layers_drawn.py" in selected["engine"]
    assert "-k" not in selected["tests"]


def test_an_op_beside_another_change_leaves_nothing_of_the_other_out():
    selected = select([f"{SOURCE}/ops/rms_norm.py", f"{SOURCE}/dispatch/life.py"])
    assert {f"{CORE}/tests/test_life.py", f"{CORE}/tests/test_ops.py"} <= {*selected["tests"]}
    assert "-k" not in selected["tests"]


@pytest.mark.parametrize("vendor", ["nvidia", "ascend", "mlu"])
def test_a_vendor_package_runs_its_own_tests(vendor: str):
    selected = select([f"packages/sglang-fl-{vendor}/src/sglang_fl_{vendor}/vendor/__init__.py"])
    assert selected.keys() == {vendor, "tests"}
    assert all(test.startswith(f"packages/sglang-fl-{vendor}/tests/") for test in selected[vendor])
    assert selected["tests"] == [LAYOUT]


def test_a_test_file_runs_itself_and_a_helper_those_that_import_it():
    assert select(["tests/engine/test_verify.py"])["engine"] == ["tests/engine/test_verify.py"]
    importing = [f"tests/engine/test_{name}.py" for name in ("embedding", "whisper")]
    assert select(["tests/engine/words.py"])["engine"] == importing
    lives = [f"{CORE}/tests/test_life{subject}.py" for subject in ("", "_copies", "_results", "_sglangs")]
    assert {*lives} <= {*select([f"{CORE}/tests/norm_layers.py"])["tests"]}


def test_a_deleted_test_file_is_not_run():
    assert select(["tests/engine/test_gone.py"]) == {"tests": [LAYOUT]}


def test_a_page_runs_what_the_layout_promises():
    assert select(["docs/ops.md"]) == {"tests": [LAYOUT]}
