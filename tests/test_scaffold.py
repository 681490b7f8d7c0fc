"""``sglang-fl new-vendor``: what it writes, and what it refuses to write."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from sglang_fl.cli import app
from sglang_fl.ops import OPS
from sglang_fl.scaffold import write

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs/examples/sglang-fl-toychip"


def new_vendor(into: Path, name: str, device_type: str, *arguments: str) -> Result:
    words = ["new-vendor", name, "--device-type", device_type, "--into", str(into), *arguments]
    return CliRunner().invoke(app, words)


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def test_the_example_is_what_the_command_writes(tmp_path: Path):
    done = new_vendor(tmp_path, "toychip", "toychip")
    assert done.exit_code == 0, done.output
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "."],
        cwd=EXAMPLE,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    written = contents(tmp_path / "sglang-fl-toychip")
    assert written.keys() == set(tracked), "see sglang-fl new-vendor toychip --device-type toychip"
    assert written == {name: (EXAMPLE / name).read_text() for name in tracked}
    assert written["LICENSE"] == (ROOT / "LICENSE").read_text()


KINDS = [("acme", "acme", ()), ("acme", "cpu", ()), ("acme_two", "acme", ("--from", "flag_gems"))]


@pytest.mark.parametrize(("name", "device_type", "more"), KINDS, ids=["new", "built-in", "flag-gems"])
def test_its_object_can_be_made_and_no_word_is_left(tmp_path: Path, name, device_type, more):
    done = new_vendor(tmp_path, name, device_type, *more)
    assert done.exit_code == 0, done.output
    folder = tmp_path / f"sglang-fl-{name}"
    assert not [file for file, text in contents(folder).items() if "@NAME@" in text or "@DEVICE@" in text]
    told = "v.device_type, v.platform is None, len(v.impls)"
    code = f"import sglang_fl_{name} as package; v = package.{name.upper()}; print({told})"
    source = f"import sys; sys.path.insert(0, {str(folder / 'src')!r}); {code}"
    done_there = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    device, has_no_platform, impls = done_there.stdout.split()
    assert (device, has_no_platform) == (device_type, str(device_type == "cpu"))
    flagos = (ROOT / "packages/sglang-fl-core/src/sglang_fl/flagos").glob("*.py")
    assert int(impls) == 1 + (len([path for path in flagos if path.stem in OPS]) if more else 0)


#: Attributes of torch, its other devices, a word of Python.
TAKEN_TYPES = (
    "nn",
    "compile",
    "load",
    "device",
    "einsum",
    "os",
    "fft",
    "xla",
    "vulkan",
    "meta",
    "hip",
    "class",
    "float",
)


def test_an_installed_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "site" / "sglang_fl_acme").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "site")
    done = new_vendor(tmp_path / "into", "acme", "acme")
    assert (done.exit_code, "is that of a package that is installed here" in done.output) == (2, True)


def test_what_cannot_be_written_whole_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written = []

    def full(path: Path, text: str) -> Path:
        if len(written) == 5:
            raise OSError(28, "No space left on device")
        written.append(own(path, text))
        return path

    own = write._write
    monkeypatch.setattr(write, "_write", full)
    done = new_vendor(tmp_path, "acme", "acme")
    assert (done.exit_code, "cannot be written: No space left on device" in done.output) == (2, True)
    assert len(written) == 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "device_type", "more", "fault"),
    [
        ("Acme", "acme", (), "the vendor's name 'Acme' must be up to 40 lower case letters"),
        ("acme", "acme:0", (), "--device-type 'acme:0' must be"),
        ("cpu", "cpu", (), "is core's own"),
        ("a" * 300, "acme", (), "must be up to 40 lower case letters"),
        ("acme", "d" * 300, (), "must be up to 40 lower case letters"),
        ("nvidia", "cuda", (), "'nvidia' is that of the package sglang-fl-nvidia"),
        *(("acme", device_type, (), "has something else of that name") for device_type in TAKEN_TYPES),
        ("acme", "acme", ("--from", "triton"), "--from 'triton': valid is flag_gems"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(tmp_path: Path, name, device_type, more, fault):
    done = new_vendor(tmp_path, name, device_type, *more)
    assert done.exit_code == 2
    assert fault in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("device_type", "count"), [("acme", 7), ("cuda", 4)])
def test_its_readme_lists_what_is_to_be_changed(tmp_path: Path, device_type: str, count: int):
    new_vendor(tmp_path, "acme", device_type)
    readme = contents(tmp_path / "sglang-fl-acme")["README.md"]
    assert readme.count("- [ ] ") == count
    assert ("SGLANG_FL_SIMULATED=acme sglang-fl verify" in readme) == (device_type == "acme")


def test_what_is_printed_says_how_to_verify_without_the_chip(tmp_path: Path):
    told = new_vendor(tmp_path, "acme", "acme").stdout
    assert told.splitlines()[-1].endswith(
        "sglang-fl-acme && SGLANG_FL_SIMULATED=acme sglang-fl verify silu_and_mul"
    )
    answer = json.loads(new_vendor(tmp_path, "other", "other", "--json").stdout)
    assert answer["next"].endswith("SGLANG_FL_SIMULATED=other sglang-fl verify silu_and_mul")
    assert "src/sglang_fl_other/__init__.py" in answer["files"]


def test_its_sessions_take_core_from_where_the_user_says(tmp_path: Path):
    """Call its session with a stand-in for nox that tells what would be installed."""
    new_vendor(tmp_path, "acme", "acme")
    code = (
        "import noxfile\n"
        "class Session:\n"
        "    posargs = []\n"
        "    def install(self, *words): print(*words)\n"
        "    def run(self, *words): pass\n"
        "noxfile.tests.func(Session())"
    )
    folder, site = tmp_path / "sglang-fl-acme", tmp_path / "site"
    site.mkdir()
    session = "class session:\n    def __init__(self, func): self.func = func\n"
    (site / "nox.py").write_text(f"class options: pass\nclass Session: pass\n{session}")
    for core, told in (("../core", "../core -e . pytest>=8"), ("", "-e . pytest>=8")):
        environment = os.environ | {"SGLANG_FL_CORE": core, "PYTHONPATH": str(site)}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == told


def test_a_folder_that_exists_is_left_alone(tmp_path: Path):
    (tmp_path / "sglang-fl-acme").mkdir()
    done = new_vendor(tmp_path, "acme", "acme")
    assert (done.exit_code, "exists already" in done.output) == (2, True)
