"""The version matrix: which states there are, and which the ranges allow; with tags and without."""

import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.version import Version

from release.distribution import version_of
from release.matrix import lacking, last_tag, states_of

ROOT = Path(__file__).parents[2]


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of its own with two packages as they are now, and no tag."""
    root = tmp_path / "repository"
    for name in ("core", "mlu"):
        package = f"packages/sglang-fl-{name}"
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    return root


def labels(package: str, repository: Path, folder: Path) -> list[str]:
    return [state.label for state in states_of(package, folder, repository)]


def test_without_a_tag_there_is_no_last_release(repository: Path, tmp_path: Path):
    assert last_tag("sglang-fl-mlu", repository) is None
    assert labels("sglang-fl-mlu", repository, tmp_path / "it") == ["now", "later"]


def test_the_last_release_is_there_where_it_differs(repository: Path, tmp_path: Path):
    version = repository / "packages/sglang-fl-mlu/src/sglang_fl_mlu/_version.py"
    version.write_text('__version__ = "3.1.0"\n')
    git(repository, "commit", "-qam", "release")
    git(repository, "tag", "sglang-fl-mlu-v3.1.0")
    assert labels("sglang-fl-mlu", repository, tmp_path / "same") == ["now", "later"]
    version.write_text('__version__ = "3.1.1"\n')
    git(repository, "commit", "-qam", "second")
    now, former, later = states_of("sglang-fl-mlu", tmp_path / "other", repository)
    states = [str(state) for state in (now, former, later)]
    assert states == ["3.1.1 (now)", "3.1.0 (sglang-fl-mlu-v3.1.0)", "3.2.0 (later)"]
    assert "core_api=99" in (later.source / "src/sglang_fl_mlu/__init__.py").read_text()


def test_the_ranges_are_those_of_the_built_wheel(repository: Path, tmp_path: Path):
    now, later = states_of("sglang-fl-mlu", tmp_path / "mlu", repository)
    core, later_core = states_of("sglang-fl-core", tmp_path / "core", repository)
    own = Version(version_of(ROOT / "packages/sglang-fl-core"))
    assert [core.version, later_core.version] == [own, Version(f"{own.major}.{own.minor + 1}.0")]
    assert (now.allows(core), now.allows(later_core)) == (True, False)
    assert (later.allows(core), later.allows(later_core)) == (False, True)


def test_what_a_former_core_requires_and_todays_does_not_is_found(repository: Path, tmp_path: Path):
    project = repository / "packages/sglang-fl-core/pyproject.toml"
    todays = project.read_text()
    project.write_text(todays.replace('  "rich>=13",', '  "no-such-package>=2",\n  "rich>=9999",'))
    git(repository, "commit", "-qam", "release")
    git(repository, "tag", "sglang-fl-core-v3.1.0")
    project.write_text(todays)
    git(repository, "commit", "-qam", "second")
    now, former, _ = states_of("sglang-fl-core", tmp_path / "core", repository)
    assert lacking([now]) == []
    assert lacking([now, former]) == ["no-such-package>=2", "rich>=9999"]
