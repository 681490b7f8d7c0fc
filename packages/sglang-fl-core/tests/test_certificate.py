"""``sglang-fl verify``: its table, its certificate, and the comparison of two machines'."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from sglang_fl import progress
from sglang_fl.cli import app
from sglang_fl.conformance import ASPECTS
from sglang_fl.conformance.certificate import read_certificate
from sglang_fl.diagnostics import verification
from sglang_fl.diagnostics.examinations import verify_apart
from sglang_fl.errors import SettingsError, SglangFlError
from sglang_fl.vendor import BackendKind, OpImpl

Install = Callable[..., str]


def verify(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["verify", *map(str, arguments)])


@pytest.fixture
def certify(tmp_path: Path) -> Callable[..., Path]:
    """Verify one op and return the certificate."""

    def certify(name: str, code: int = 0) -> Path:
        path = tmp_path / f"{name}.json"
        done = verify("silu_and_mul", "--certificate", path)
        assert done.exit_code == code, done.output
        return path

    return certify


@pytest.fixture
def install_kernel(install_vendor: Install, write_module) -> Callable[[str], None]:
    """Install a vendor with one kernel of this body."""

    def install_kernel(body: str) -> None:
        source = f"from sglang_fl.ops import OPS\nREFERENCE = OPS['silu_and_mul'].reference\n{body}\n"
        target = f"{write_module(source)}:silu_and_mul"
        install_vendor("toy", impls=f'OpImpl("silu_and_mul", VENDOR, "vendor.toy", "{target}"),')

    return install_kernel


RIGHT = "silu_and_mul = lambda x: REFERENCE(x)"
WRONG = "silu_and_mul = lambda x: 2 * REFERENCE(x)"
DENSE_ROWS_ALONE = """
def silu_and_mul(x):
    if not x.is_contiguous():
        raise ValueError("rows must be dense")
    return REFERENCE(x)
"""


def test_right_vendor_is_certified_with_versions_and_hash(install_kernel, certify):
    install_kernel(RIGHT)
    certificate = json.loads(certify("right").read_text())
    assert (certificate["vendor"], certificate["package"]) == ("toy", "sglang-fl-toy 0.0.1")
    assert {"python", "torch", "sglang-fl-core"} <= certificate["versions"].keys()
    states = {row["impl"]: row["state"] for row in certificate["implementations"]}
    assert states == {"vendor.toy": "passes", "reference": "passes"}
    for row in certificate["implementations"]:
        assert (row["graphs"], row["not_checked"]) == (0, ["graph: a CPU captures no graphs"])
        assert list(row["faults"]) == ["cases", "edges", "repeat"]
    assert len(certificate["hash"]) == 64


def test_wrong_kernel_is_told_and_ends_with_code_1(install_kernel, certify):
    install_kernel(WRONG)
    path = certify("wrong", code=1)
    rows = {row["impl"]: row for row in json.loads(path.read_text())["implementations"]}
    assert rows["vendor.toy"]["state"] == "fails"
    assert "units from float64" in rows["vendor.toy"]["faults"]["cases"][0]


def test_faults_are_whole_lines_below_the_table(install_kernel):
    install_kernel(WRONG)
    done = verify("silu_and_mul")
    assert done.exit_code == 1
    lines = done.output.splitlines()
    (fault, *_) = [line for line in lines if line.startswith("silu_and_mul vendor.toy: faults: ")]
    assert fault.endswith("units from float64, allowed are 0.55")
    both = "silu_and_mul vendor.toy, silu_and_mul reference"
    assert f"{both}: not checked: graph: a CPU captures no graphs" in lines


def test_a_kernel_that_raises_is_told_with_each_case_that_it_raises_in(install_kernel):
    install_kernel(DENSE_ROWS_ALONE)
    done = verify("silu_and_mul")
    assert done.exit_code == 1
    faults = [line for line in done.output.splitlines() if ": faults: " in line]
    cases = (
        "silu_and_mul vendor.toy: faults: silu_and_mul[row-strided-{}]: raised ValueError: rows must be dense"
    )
    assert [cases.format(dtype) for dtype in ("float16", "bfloat16", "float32")] == faults[:3]
    assert all("rows must be dense" in fault for fault in faults)
    assert len(faults) == len(set(faults))


def test_table_as_json_has_a_row_for_each_implementation(install_kernel):
    install_kernel(RIGHT)
    done = verify("silu_and_mul", "--json")
    rows: list[dict[str, Any]] = json.loads(done.stdout)["implementations"]
    assert [(row["implementation"], row["faults"]) for row in rows] == [("vendor.toy", []), ("reference", [])]
    assert all(row["host_us"] > 0 for row in rows)


def test_two_runs_of_one_machine_agree(certify):
    done = verify("--compare", certify("one"), certify("other"))
    assert (done.exit_code, "agree in all" in done.output) == (0, True)


ABSENT = "return 'torch_toy is not installed'"


@pytest.fixture
def install_absent(install_vendor: Install, write_module, site: Path) -> Callable[..., None]:
    """Install a vendor whose only kernel raises, and whose chip is not here."""

    def install_absent(name: str = "toy", *, simulated: bool = False) -> None:
        target = f"{write_module('def relu2(x): raise RuntimeError')}:relu2"
        install_vendor(name, probe=ABSENT, impls=f'OpImpl("relu2", VENDOR, "vendor.{name}", "{target}"),')
        if simulated:
            points = site / f"sglang_fl_{name}-0.0.1.dist-info" / "entry_points.txt"
            points.write_text(f"{points.read_text()}[sglang_fl.simulated]\n{name} = nowhere:CHIP\n")

    return install_absent


def test_vendor_whose_chip_is_not_here_is_named_and_ends_with_code_3(install_absent, tmp_path: Path):
    install_absent(simulated=True)
    done = verify("relu2", "--certificate", tmp_path / "c.json")
    sentence = (
        "vendor toy (sglang-fl-toy 0.0.1): torch_toy is not installed. On its simulated chip: "
        "SGLANG_FL_SIMULATED=toy sglang-fl verify relu2"
    )
    assert done.exit_code == 3, done.output
    assert done.stdout.splitlines()[0] == f"not verified: {sentence}"
    assert read_certificate(tmp_path / "c.json")["not_verified"] == [sentence]
    assert json.loads(verify("relu2", "--json").stdout)["not_verified"] == [sentence]


def test_vendor_without_a_simulated_chip_is_named_without_a_command(install_absent):
    install_absent()
    assert verify("relu2").stdout.splitlines()[0].endswith("torch_toy is not installed")


@pytest.mark.parametrize(
    "arguments", [("relu2", "--references"), ("silu_and_mul",)], ids=["references", "an op that it has not"]
)
def test_vendor_that_was_not_asked_for_ends_with_code_0(install_absent, arguments: tuple[str, ...]):
    install_absent()
    done = verify(*arguments)
    assert (done.exit_code, "not verified" in done.output) == (0, False)


def test_vendor_beside_the_chosen_one_is_named_and_ends_with_code_0(install_absent, monkeypatch):
    install_absent()
    monkeypatch.setenv("SGLANG_FL_PLATFORM", "cpu")
    done = verify("relu2")
    assert (done.exit_code, "not verified: vendor toy" in done.output) == (0, True)


def test_vendor_package_that_cannot_be_imported_ends_with_code_3(install: Install):
    install("toy", "import no_such_module")
    done = verify("relu2")
    assert done.exit_code == 3
    assert "not verified: vendor toy (sglang-fl-toy 0.0.1): ModuleNotFoundError" in done.output


def test_vendor_whose_kernels_need_what_is_not_installed_ends_with_code_3(install_vendor: Install):
    needs = 'OpImpl("relu2", VENDOR, "vendor.toy", "toy:relu2", requires=("no_such_library",)),'
    install_vendor("toy", impls=needs)
    done = verify("relu2")
    assert done.exit_code == 3
    assert "none of its implementations could be checked" in done.output


def with_change(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write what another machine could have written."""
    from sglang_fl.conformance.certificate import _hash

    content = json.loads(path.read_text())
    change(content)
    other = path.with_name("other.json")
    other.write_text(json.dumps({**content, "hash": _hash(content)}))
    return other


@pytest.mark.parametrize(
    ("change", "code", "what"),
    [
        (lambda c: c["versions"].update(torch="9.9"), 0, "torch"),
        (lambda c: c["implementations"][0].update(digest="0" * 16), 0, "silu_and_mul reference digest"),
        (lambda c: c["implementations"][0].update(state="fails"), 1, "silu_and_mul reference state"),
        (lambda c: c["implementations"].pop(), 0, "silu_and_mul reference"),
    ],
    ids=["version", "bits", "state", "missing"],
)
def test_what_differs_between_two_machines_is_listed(certify, change, code: int, what: str):
    one = certify("one")
    done = verify("--json", "--compare", one, with_change(one, change))
    assert done.exit_code == code
    assert [row["what"] for row in json.loads(done.stdout)] == [what]


def test_certificate_that_was_changed_is_refused(certify):
    path = certify("one")
    path.write_text(path.read_text().replace('"passes"', '"fails"'))
    with pytest.raises(SettingsError, match="its hash does not fit what stands in it"):
        read_certificate(path)
    done = verify("--compare", path, path)
    assert done.exit_code == 2
    assert "it was changed" in done.output


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "cannot be read as a certificate: it is empty"),
        ("{", "cannot be read as a certificate: it is no JSON: line 1, column 2"),
        ("{}", "it is no certificate: `sglang-fl verify --certificate FILE` writes one"),
        ('{"format": 2}', r"it is a certificate of format 2, and sglang-fl-core \S+ reads format 1"),
    ],
)
def test_what_is_no_certificate_is_refused(tmp_path: Path, text: str, fault: str):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(SettingsError, match=fault):
        read_certificate(tmp_path / "x.json")


@pytest.mark.parametrize("words", [("relu2",), ("--stress",), ("--references",), ("--certificate", "c.json")])
def test_a_comparison_takes_nothing_that_it_would_leave_out(words: tuple[str, ...]):
    done = verify(*words, "--compare", "a.json", "b.json")
    assert done.exit_code == 2
    assert "--compare reads two certificates and takes no OP and no option but --json" in done.output


def test_unknown_op_is_an_error_with_the_nearest():
    done = verify("silu_and_mull")
    assert done.exit_code == 2
    assert "Nearest: silu_and_mul." in done.output


def test_several_ops_are_verified_and_no_other():
    done = verify("relu2", "silu_and_mul", "--references", "--json")
    found = json.loads(done.stdout)["implementations"]
    assert [row["op"] for row in found] == ["relu2", "silu_and_mul"]
    assert verify("relu2", "silu_and_mull", "--references").exit_code == 2


def test_certificate_that_would_overwrite_the_settings_is_refused(tmp_path: Path, monkeypatch):
    config = tmp_path / "fl.yaml"
    config.write_text("prefer: reference\n")
    monkeypatch.setenv("SGLANG_FL_CONFIG", str(config))
    with pytest.raises(SettingsError, match=r"--certificate .* and SGLANG_FL_CONFIG=.* are the same file"):
        verification.verify(["silu_and_mul"], config, True, False, print)
    assert config.read_text() == "prefer: reference\n"


def test_certificate_that_cannot_be_written_is_told(tmp_path: Path):
    for path, reason in ((tmp_path / "no" / "such.json", "No such file"), (tmp_path, "it is a folder")):
        done = verify("relu2", "--certificate", path)
        assert done.exit_code == 2
        assert f"--certificate '{path}': {reason}" in done.output
        assert "(1 of 1)" not in done.output  # nothing was checked for it


def test_each_implementation_is_named_before_it_is_checked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    said = CliRunner().invoke(app, ["verify", "relu2", "--json"])
    assert said.stderr.splitlines()[-1] == "verify: relu2 reference (1 of 1)"
    assert json.loads(said.stdout)


def test_in_processes_of_their_own_implementations_get_the_same_certificate(install_kernel, tmp_path: Path):
    install_kernel(RIGHT)
    alone, apart = tmp_path / "alone.json", tmp_path / "apart.json"
    assert verify("silu_and_mul", "--certificate", alone).exit_code == 0
    done = verify("silu_and_mul", "--jobs", 4, "--certificate", apart)
    assert done.exit_code == 0, done.output
    assert verify("--compare", alone, apart).exit_code == 0
    rows = [read_certificate(path)["implementations"] for path in (alone, apart)]
    assert [{**row, "host_us": 0} for row in rows[0]] == [{**row, "host_us": 0} for row in rows[1]]
    assert all(row["host_us"] > 0 for row in rows[1])


def test_a_kernel_that_ends_its_process_is_a_fault_of_its_own(install_kernel):
    install_kernel("import os\ndef silu_and_mul(x):\n    print('about to', flush=True)\n    os.abort()\n")
    done = verify("silu_and_mul", "--jobs", 2, "--json")
    assert done.exit_code == 1, done.output
    rows = {row["implementation"]: row for row in json.loads(done.stdout)["implementations"]}
    assert rows["reference"]["state"] == "passes"
    assert rows["vendor.toy"]["faults"][0] == (
        "silu_and_mul vendor.toy, cases: its process ended with signal SIGABRT, without an answer: about to"
    )
    assert [fault.split(":")[0] for fault in rows["vendor.toy"]["faults"]] == [
        f"silu_and_mul vendor.toy, {aspect}" for aspect in ("cases", "edges", "repeat", "graph")
    ]


@pytest.fixture
def kernel_of(write_module) -> Callable[[str], OpImpl]:
    """Return an implementation of this body that no vendor has."""

    def kernel_of(body: str) -> OpImpl:
        source = f"import threading, time\nfrom sglang_fl.ops import OPS\n{body}\n"
        return OpImpl(
            "silu_and_mul", BackendKind.VENDOR, "vendor.toy", f"{write_module(source)}:silu_and_mul"
        )

    return kernel_of


def test_a_kernel_whose_threads_go_on_has_its_answer(kernel_of):
    thread = "threading.Thread(target=threading.Event().wait).start()"
    impl = kernel_of(f"{thread}\nsilu_and_mul = lambda x: OPS['silu_and_mul'].reference(x)")
    (verdict,) = verify_apart([impl], "cpu", ["repeat"], 2, lambda step: None)
    assert verdict.state == "passes"


def test_a_process_that_cannot_begin_is_no_fault_of_its_kernel(kernel_of, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_PREFER", "flagso")
    fault = (
        "before it was looked at: silu_and_mul vendor.toy, repeat: its process ended with code 1, without an "
        "answer: .*SGLANG_FL_PREFER='flagso': no such backend kind"
    )
    with pytest.raises(SglangFlError, match=fault):
        verify_apart([kernel_of("")], "cpu", ["repeat"], 2, lambda step: None)


def test_ctrl_c_ends_processes_that_hang(kernel_of):
    impl = kernel_of("silu_and_mul = lambda x: time.sleep(3600)")
    said: list[str] = []

    def say(step: str) -> None:
        said.append(step)
        if len(said) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        verify_apart([impl], "cpu", ASPECTS, 2, say)
    assert len(said) == 2
    assert not multiprocessing.active_children()


def test_a_number_of_jobs_that_cannot_be_is_refused():
    done = verify("relu2", "--jobs", "0")
    assert done.exit_code == 2
    assert "--jobs" in done.stderr
