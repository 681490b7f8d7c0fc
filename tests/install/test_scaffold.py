"""A package that ``sglang-fl new-vendor`` wrote, as its team gets it: built, installed, tested, served."""

import os
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(400)

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Installed:
    """An environment with core's wheel and that of a new package.

    Parameters
    ----------
    python : its interpreter
    folder : the package's source
    seconds : from the command to the end of its own tests
    tests : what those tests printed
    """

    python: Path
    folder: Path
    seconds: float
    tests: str


def run(*command: object, cwd: Path, **settings: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=clean | settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=["toychip", "cpu"])
def installed(request, tmp_path_factory) -> Installed:
    """Write, build, install and test a package for such a device."""
    folder = tmp_path_factory.mktemp("scaffold")
    pip = (sys.executable, "-m", "pip")
    build = (*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder / "wheels")
    run(*build, ROOT / "packages/sglang-fl-core", cwd=folder)
    begin = time.monotonic()
    command = (sys.executable, "-c", "from sglang_fl.cli import app; app()", "new-vendor", "toychip")
    run(*command, "--device-type", request.param, cwd=folder)
    package = folder / "sglang-fl-toychip"
    run(*build, package, cwd=folder)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv/bin/python"
    wheels = sorted((folder / "wheels").glob("*.whl"))
    run(*pip, "--python", python, "install", "-q", "--no-deps", *wheels, cwd=folder)
    use_third_party(folder / "venv")
    alone = ("--disable-plugin-autoload", "-p", "no:cacheprovider")
    tests = run(python, "-m", "pytest", *alone, "tests", cwd=package)
    return Installed(python, package, time.monotonic() - begin, tests)


def use_third_party(environment: Path) -> None:
    """Third-party packages come from this environment, ours from the wheels alone."""
    folders = [Path(path) for path in sys.path if path.endswith("site-packages")]
    lines = [str(folder) for folder in folders if not list(folder.glob("*sglang_fl*"))]
    major, minor = sys.version_info[:2]
    site = environment / "lib" / f"python{major}.{minor}" / "site-packages"
    (site / "third_party.pth").write_text("\n".join(lines))


def test_it_passes_the_kit_without_an_edit(installed: Installed, capsys: pytest.CaptureFixture[str]):
    with capsys.disabled():
        print(
            f"\n{installed.folder.name}: from new-vendor to a wheel that passes in {installed.seconds:.0f} s"
        )
    assert "failed" not in installed.tests
    assert " passed" in installed.tests
    assert "needs the chip" not in installed.tests


def test_it_is_found(installed: Installed):
    told = run(installed.python.parent / "sglang-fl", "vendors", "--json", cwd=installed.folder)
    assert '"package": "sglang-fl-toychip 0.1.0"' in told


def test_it_serves_a_tiny_model_on_the_platform_of_its_simulated_chip(installed: Installed, tmp_path: Path):
    if not (installed.folder / "src/sglang_fl_toychip/simulated.py").exists():
        pytest.skip("PyTorch has this device itself")
    told = run(installed.python, "-m", "demo", "--keep", tmp_path, "--simulated", "toychip", cwd=ROOT)
    assert "[OOT-DISPATCH] SiluAndMul → vendor(vendor.toychip)" in told
    assert "[OOT-DISPATCH] RMSNorm → reference(reference)" in told
    assert "'device': 'toychip'" in (tmp_path / "server.log").read_text()  # which no other platform has


def test_sglang_gets_cores_platform_for_a_device_that_pytorch_has(installed: Installed):
    if (installed.folder / "src/sglang_fl_toychip/platform.py").exists():
        pytest.skip("it has a platform of its own, and has served on it")
    code = "from sglang_fl.plugin import activate_platform; print(activate_platform())"
    told = run(installed.python, "-c", code, cwd=installed.folder)
    assert told.split()[-1].endswith(".CpuPlatform")
