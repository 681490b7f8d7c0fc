"""The check of the public modules: it finds what breaks a vendor package, and lets the rest pass."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("griffe", reason="the session api has it")

from release.public_api import PACKAGE, PUBLIC, SOURCE, check

ROOT = Path(__file__).parents[2]
VENDOR, IMPLS, TARGETS, FLAG_GEMS = (
    f"vendor/{name}.py" for name in ("vendor", "impls", "targets", "flag_gems")
)
SILU = "ops/silu_and_mul.py"
Edit = Callable[[str, str, str], None]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of its own with core's public modules as they are now, and no tag."""
    for name in ("__init__", "_version", *PUBLIC):
        path = Path(SOURCE, PACKAGE, name)
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, tmp_path / path, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            file = tmp_path / path.with_suffix(".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path.with_suffix(".py"), file)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "first")
    return tmp_path


@pytest.fixture
def released(repository: Path) -> Path:
    git(repository, "tag", "sglang-fl-core-v0.1.0")
    return repository


@pytest.fixture
def edit(released: Path) -> Edit:
    def edit(file: str, old: str, new: str) -> None:
        path = released / SOURCE / "sglang_fl" / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return edit


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True)


def test_without_a_tag_it_says_so_and_passes(repository: Path):
    status, text = check(repository)
    assert (status, "no tag sglang-fl-core-v*" in text) == (0, True)


def test_the_same_source_passes(released: Path):
    assert check(released) == (0, "public API: nothing is broken since sglang-fl-core-v0.1.0")


BREAKING = {
    "parameter-without-default": (
        IMPLS,
        "requires: tuple[str, ...] = ()\n\n    def __post",
        "requires: tuple[str, ...]\n\n    def __post",
    ),
    "parameter-renamed": (TARGETS, "def load_target(target: str)", "def load_target(name: str)"),
    "contract-with-another-order": (
        SILU,
        "def silu_and_mul(x: Tensor)",
        "def silu_and_mul(out: Tensor, x: Tensor)",
    ),
    "class-of-ops": (
        "ops/op.py",
        "def check_signature(self, kernel: Kernel)",
        "def check_signature(self, impl: Kernel)",
    ),
    "kit-without-its-check": (
        "conformance/check.py",
        "def check_impl(impl: OpImpl, device: str)",
        "def check_impl(impl: OpImpl)",
    ),
}


@pytest.mark.parametrize(("file", "old", "new"), BREAKING.values(), ids=BREAKING)
def test_a_breaking_change_is_refused_without_a_new_core_api(released: Path, edit: Edit, file, old, new):
    edit(file, old, new)
    status, text = check(released)
    assert status == 1, text
    assert "raise CORE_API from 1" in text
    edit(VENDOR, "\nCORE_API = 1\n", "\nCORE_API = 2\n")
    assert check(released)[0] == 0


GONE = {
    "function": (FLAG_GEMS, "def flag_gems_impl(", "def gems_impl("),
    "class": ("errors.py", "class UnsupportedError(", "class Unsupported("),
}


@pytest.mark.parametrize(("file", "old", "new"), GONE.values(), ids=GONE)
def test_a_name_that_goes_without_a_warning_is_refused_with_a_new_core_api_too(
    released: Path, edit: Edit, file, old, new
):
    edit(file, old, new)
    edit(VENDOR, "\nCORE_API = 1\n", "\nCORE_API = 2\n")
    status, text = check(released)
    assert status == 1
    assert "sglang-fl-core-v0.1.0 had not deprecated these:" in text


@pytest.mark.parametrize(("file", "old", "new"), GONE.values(), ids=GONE)
def test_a_name_that_the_last_release_had_deprecated_may_go(repository: Path, file, old, new):
    path = repository / SOURCE / "sglang_fl" / file
    marked = path.read_text().replace(old, f'@deprecated("use another")\n{old}')
    path.write_text(f"{marked}\nfrom typing_extensions import deprecated\n")
    git(repository, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qam", "deprecated")
    git(repository, "tag", "sglang-fl-core-v0.1.0")
    path.write_text(path.read_text().replace(old, new))
    assert check(repository) == (0, "public API: nothing is broken since sglang-fl-core-v0.1.0")


HARMLESS = {
    "parameter-with-default": (
        TARGETS,
        "def load_target(target: str)",
        "def load_target(target: str, again: bool = False)",
    ),
    "private-function": (
        VENDOR,
        "def _check_kind(self, impl: OpImpl)",
        "def _check_kind(self, op: OpImpl)",
    ),
    "body": (SILU, "F.silu(gate) * up", "up * F.silu(gate)"),
}


@pytest.mark.parametrize(("file", "old", "new"), HARMLESS.values(), ids=HARMLESS)
def test_a_change_that_harms_nobody_passes(released: Path, edit: Edit, file, old, new):
    edit(file, old, new)
    assert check(released)[0] == 0


def test_an_op_may_not_go(released: Path):
    (released / SOURCE / "sglang_fl/ops/relu2.py").unlink()
    status, text = check(released)
    assert status == 1
    assert "ops/relu2.py" in text


def test_a_file_of_what_ops_share_may_go(released: Path):
    (released / SOURCE / "sglang_fl/ops/compare.py").unlink()
    assert check(released)[0] == 0
