"""What a release refuses: a dirty tree, a version that is out already, a wheel with other files."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from release.distribution import ReleaseError, bill_of_materials, check_tree, wheel_faults

METADATA = """Metadata-Version: 2.4
Name: sglang-fl-toy
Version: 0.2.1
License-Expression: Apache-2.0
Requires-Dist: sglang-fl-core<0.5,>=0.3
Requires-Dist: flag-gems>=5; extra == 'flagos'
"""


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a repository of its own, ready for release."""
    package = tmp_path / "packages/sglang-fl-toy"
    files = {
        "src/sglang_fl_toy/__init__.py": "",
        "src/sglang_fl_toy/_version.py": '__version__ = "0.2.1"\n',
        "src/sglang_fl_toy/py.typed": "",
        "CHANGELOG.md": "# Changes\n",
        "changelog.d/+one.added.md": "One.\n",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return package


def test_package_that_is_ready_gets_its_tag(package: Path):
    assert check_tree(package, package.parents[1]) == "sglang-fl-toy-v0.2.1"


def test_tree_that_is_not_clean_is_refused(package: Path):
    (package / "src/sglang_fl_toy/more.py").touch()
    with pytest.raises(ReleaseError, match="the tree is not clean"):
        check_tree(package, package.parents[1])


def test_change_of_another_package_does_not_matter(package: Path):
    (package.parent / "sglang-fl-other").mkdir()
    (package.parent / "sglang-fl-other/x.py").touch()
    check_tree(package, package.parents[1])


def test_version_that_is_out_already_is_refused_but_on_its_own_commit(package: Path):
    root = package.parents[1]
    git(root, "tag", "sglang-fl-toy-v0.2.1")
    check_tree(package, root)
    git(root, "commit", "-q", "--allow-empty", "-m", "second")
    with pytest.raises(ReleaseError, match=r"sglang-fl-toy-v0\.2\.1 is released already"):
        check_tree(package, root)


def test_release_without_a_word_of_what_changed_is_refused(package: Path):
    root = package.parents[1]
    git(root, "rm", "-q", str(package / "changelog.d/+one.added.md"))
    git(root, "commit", "-q", "-m", "second")
    with pytest.raises(ReleaseError, match=r"no fragment in changelog\.d, and no section for 0\.2\.1"):
        check_tree(package, root)
    (package / "CHANGELOG.md").write_text("# Changes\n\n## 0.2.1 (2030-01-01)\n")
    git(root, "commit", "-qam", "third")
    check_tree(package, root)


def wheel(package: Path, *changes: str) -> Path:
    """Write a wheel of the package; ``-name`` leaves a file out, ``+name`` puts one in."""
    members = {f"sglang_fl_toy/{name}": "" for name in ("__init__.py", "_version.py", "py.typed")}
    info = "sglang_fl_toy-0.2.1.dist-info"
    members |= {f"{info}/METADATA": METADATA, f"{info}/RECORD": "", f"{info}/licenses/LICENSE": "Apache"}
    for change in changes:
        if change[0] == "-":
            del members[change[1:]]
        else:
            members[change[1:]] = ""
    path = package.parents[1] / "sglang_fl_toy-0.2.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("+tests/test_toy.py", "tests/test_toy.py does not belong there"),
        ("+sglang_fl_toy/left_over.py", "sglang_fl_toy/left_over.py does not belong there"),
        ("-sglang_fl_toy/py.typed", "sglang_fl_toy/py.typed is missing"),
        ("-sglang_fl_toy-0.2.1.dist-info/licenses/LICENSE", "the licence is missing"),
    ],
)
def test_wheel_with_other_files_is_refused(package: Path, change: str, fault: str):
    assert list(wheel_faults(wheel(package), package)) == []
    assert list(wheel_faults(wheel(package, change), package)) == [fault]


def test_bill_of_materials_names_the_wheel_and_what_it_requires(package: Path):
    bill = bill_of_materials(wheel(package))
    component = bill["metadata"]["component"]
    assert (component["name"], component["version"]) == ("sglang-fl-toy", "0.2.1")
    assert component["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert [part["name"] for part in bill["components"]] == ["sglang-fl-core", "flag-gems"]
    assert bill["components"][0]["properties"] == [{"name": "requires", "value": "<0.5,>=0.3"}]
