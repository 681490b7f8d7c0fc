"""What the tests share: a clean environment, importable modules, and really installed vendor packages."""

import importlib
import itertools
import json
import logging
import multiprocessing.util
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from doctor_rows import Answer, Doctor
from sglang_fl.cli import app
from sglang_fl.startup import configure

_OWN = ("SGLANG_FL_", "SGLANG_FLAGGEMS_", "USE_FLAGGEMS")
_numbers = itertools.count()

_VENDOR = """\
from sglang_fl.vendor import BackendKind, OpImpl, Vendor

FLAGOS, VENDOR = BackendKind.FLAGOS, BackendKind.VENDOR


def why_unavailable():
    {probe}


CHIP = Vendor(
    {name!r},
    device_type="cpu",
    core_api={core_api!r},
    probe=__name__ + ":why_unavailable",
    impls=({impls}),
    defaults={defaults!r},
)
"""


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test marked ``on_chip`` on its chip. The process that deals tests out needs no torch for that."""
    from sglang_fl.conformance.simulated import worker

    return worker.pytest_pyfunc_call(pyfuncitem)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The tensors here are small: more threads only wait for each other."""
    import torch  # not above: the process that deals tests out needs none

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def _twin() -> Iterator[Any]:
    from tests.twin import started  # of the repository around this package

    with started() as twin:
        yield twin


@pytest.fixture
def forked(_twin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each Python that a test starts is forked with torch loaded: 1.5 s of processor time less."""
    monkeypatch.setattr(subprocess, "_fork_exec", _twin.fork_exec)
    monkeypatch.setattr(multiprocessing.util, "spawnv_passfds", _twin.spawn)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts with no setting, nothing configured, and the logger as it was."""
    for name in [name for name in os.environ if name.upper().startswith(_OWN)]:
        monkeypatch.delenv(name)
    configure.cache_clear()
    logger = logging.getLogger("sglang_fl")
    level = logger.level
    yield
    logger.setLevel(level)
    configure.cache_clear()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on ``sys.path``; what was imported from it is forgotten after the test."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def write_module(site: Path) -> Callable[[str], str]:
    """``write_module(source)`` makes an importable module and returns its unique name."""

    def write(source: str) -> str:
        name = f"kernels_{next(_numbers)}"
        (site / f"{name}.py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        return name

    return write


@pytest.fixture
def install(site: Path) -> Callable[..., str]:
    """``install(name, source)`` installs a distribution that registers ``CHIP`` as vendor ``name``.

    Returns the name of its import package.
    """

    def install(name: str, source: str, *, distribution: str | None = None) -> str:
        distribution = distribution or f"sglang-fl-{name}"
        package = f"{distribution.replace('-', '_')}_{next(_numbers)}"
        (site / package).mkdir()
        (site / package / "__init__.py").write_text(source)
        info = site / f"{distribution.replace('-', '_')}-0.0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.0.1\n")
        (info / "entry_points.txt").write_text(f"[sglang_fl.vendors]\n{name} = {package}:CHIP\n")
        importlib.invalidate_caches()
        return package

    return install


@pytest.fixture
def install_vendor(install: Callable[..., str]) -> Callable[..., str]:
    """Install a vendor package that is right but for what a test asks for.

    ``probe`` is the body of its probe, ``impls`` the source of its implementations, ``claims`` the
    name of its entry point where that is not the name of its ``Vendor`` object.
    """

    def install_vendor(
        name: str,
        *,
        probe: str = "return None",
        core_api: object = 1,
        impls: str = "",
        defaults: dict[str, str] | None = None,
        claims: str | None = None,
        distribution: str | None = None,
    ) -> str:
        source = _VENDOR.format(
            name=name, probe=probe, core_api=core_api, impls=impls, defaults=defaults or {}
        )
        return install(claims or name, source, distribution=distribution)

    return install_vendor


@pytest.fixture
def doctor() -> Doctor:
    """``doctor(*words)`` runs ``sglang-fl doctor --json``; returns its exit code, and its rows by subject."""

    def run(*words: str) -> Answer:
        configure.cache_clear()
        result = CliRunner().invoke(app, ["doctor", "--json", *words])
        assert isinstance(result.exception, SystemExit | None), result.output
        return result.exit_code, {row["what"]: row for row in json.loads(result.stdout)}

    return run


@pytest.fixture
def fits() -> Callable[[str, object], None]:
    """``fits(name, data)`` holds a command's output against its schema in ``docs/reference/schemas``."""
    from tests.schemas import assert_fits  # of the repository around this package

    return assert_fits


@pytest.fixture
def metadata_of(site: Path) -> Callable[..., None]:
    """``metadata_of(name, version, *requires)`` installs the metadata of a package and nothing else."""

    def write(name: str, version: str, *requires: str) -> None:
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {line}" for line in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        importlib.invalidate_caches()

    return write
