"""Wheels as a user gets them: what is in them, and what they do in an environment of their own."""

import json
import subprocess
import sys
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from release.distribution import version_of

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
NAMES = {
    "core": "sglang_fl",
    "nvidia": "sglang_fl_nvidia",
    "ascend": "sglang_fl_ascend",
    "mlu": "sglang_fl_mlu",
}


@pytest.fixture(scope="session")
def wheels(tmp_path_factory) -> dict[str, Path]:
    """The wheel of each package."""
    folder = tmp_path_factory.mktemp("wheels")
    sources = [str(ROOT / "packages" / f"sglang-fl-{name}") for name in NAMES]
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(folder), *sources], check=True, cwd=folder)
    return {name: next(folder.glob(f"sglang_fl_{name}-*.whl")) for name in NAMES}


@pytest.fixture(scope="session")
def core_alone(tmp_path_factory, wheels) -> Path:
    """The Python of an environment with core."""
    return environment(tmp_path_factory.mktemp("core"), wheels["core"])


@pytest.fixture
def with_all(tmp_path: Path, wheels) -> Path:
    """The Python of an environment with all packages."""
    return environment(tmp_path, *wheels.values())


def environment(folder: Path, *wheels: Path) -> Path:
    """Make an environment with these wheels and return its Python."""
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
    subprocess.run([*install, *map(str, wheels)], check=True)
    # Third-party packages come from this environment, ours from the wheels alone.
    folders = [Path(path) for path in sys.path if path.endswith("site-packages")]
    third_party = [str(folder) for folder in folders if not list(folder.glob("*sglang_fl*"))]
    major, minor = sys.version_info[:2]
    site = folder / "venv" / "lib" / f"python{major}.{minor}" / "site-packages"
    (site / "third_party.pth").write_text("\n".join(third_party))
    return python


def run(python: Path, code: str) -> str:
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", NAMES)
def test_a_wheel_holds_its_package_and_nothing_else(wheels, name: str, capsys: pytest.CaptureFixture[str]):
    with zipfile.ZipFile(wheels[name]) as wheel:
        members = wheel.namelist()
    with capsys.disabled():
        print(f"\n{wheels[name].name}: {len(members)} files", *sorted(members), sep="\n  ")
    tops = {member.split("/")[0] for member in members}
    assert {top for top in tops if not top.endswith(".dist-info")} == {NAMES[name]}
    assert f"{NAMES[name]}/py.typed" in members
    assert any(member.endswith("licenses/LICENSE") for member in members)
    source = ROOT / "packages" / f"sglang-fl-{name}" / "src"
    files = [path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {str(path.relative_to(source)) for path in files}
    assert {member for member in members if ".dist-info/" not in member} == expected


@pytest.mark.parametrize("name", ["nvidia", "ascend", "mlu"])
def test_a_vendor_package_depends_on_core_alone_of_ours(wheels, name: str):
    with zipfile.ZipFile(wheels[name]) as wheel:
        metadata = next(member for member in wheel.namelist() if member.endswith("METADATA"))
        headers = HeaderParser().parsestr(wheel.read(metadata).decode())
    ours = [need for need in headers.get_all("Requires-Dist", []) if need.startswith("sglang-fl")]
    assert len(ours) == 1
    assert ours[0].startswith("sglang-fl-core")


def test_sglang_finds_core_under_both_entry_points(core_alone: Path):
    code = """
import json
from importlib.metadata import entry_points

groups = ("sglang.srt.plugins", "sglang.srt.platforms")
print(json.dumps({group: [p.value for p in entry_points(group=group, name="sglang_fl")] for group in groups}))
"""
    assert json.loads(run(core_alone, code)) == {
        "sglang.srt.plugins": ["sglang_fl.plugin:load_plugin"],
        "sglang.srt.platforms": ["sglang_fl.plugin:activate_platform"],
    }


def test_vendors_installed_where_their_chip_is_missing_are_listed_with_the_reason(with_all: Path):
    output = subprocess.run(
        [str(with_all.parent / "sglang-fl"), "vendors", "--json"], capture_output=True, text=True, check=True
    ).stdout
    rows = {row["vendor"]: row for row in json.loads(output)}
    assert rows.keys() == {"ascend", "cpu", "mlu", "nvidia"}
    assert rows["cpu"]["available"]
    assert rows["ascend"]["reason"] == "torch_npu is not installed"
    assert rows["mlu"]["reason"] == "torch_mlu is not installed"
    assert rows["nvidia"]["package"] == f"sglang-fl-nvidia {version_of(ROOT / 'packages/sglang-fl-nvidia')}"


def test_importing_core_imports_nothing_heavy(core_alone: Path):
    heavy = run(
        core_alone, "import sys, sglang_fl; print([m for m in ('torch', 'pydantic') if m in sys.modules])"
    )
    assert heavy.strip() == "[]"
