"""What the layout promises and a linter cannot see."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from release.distribution import version_of
from sglang_fl.diagnostics.doctor import CHECKS
from sglang_fl.foreign_names import markdown_tables
from sglang_fl.ops import OPS
from sglang_fl.settings import markdown_table
from sglang_fl.sglang_adapter.layers import ADAPTERS

ROOT = Path(__file__).parents[1]
CORE = ROOT / "packages/sglang-fl-core/src/sglang_fl"
PACKAGES = sorted((ROOT / "packages").iterdir())


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_an_adapter(op: str):
    adapted = {adapter.op.name for adapters in ADAPTERS.values() for adapter in adapters}
    assert op in adapted, f"sglang_adapter/layers: no file has an adapter of {op}"


def test_the_page_of_settings_is_made_from_the_model():
    assert markdown_table() in (ROOT / "docs/configure.md").read_text(), "see sglang-fl env --markdown"


def test_the_page_of_foreign_names_is_made_from_them():
    assert markdown_tables() in (ROOT / "docs/coming-from.md").read_text(), (
        "see foreign_names.markdown_tables"
    )


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.name)
def test_links_of_a_page_beside_the_site_lead_to_files(page: Path):
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_pages_tell_as_many_models_as_the_page_of_models_has_rows():
    rows = re.findall(r"^\| (\S+) \|.*\de-\d\d", (ROOT / "docs/models.md").read_text(), re.MULTILINE)
    settings = r"(Llama)-(?:llama3|linear|YaRN)|(.+)-(?:attention|capped|chunked|one-pool)"
    families = {re.sub(rf"^(?:{settings})$", r"\1\2", row) for row in rows}
    for page in ("README.md", "docs/features.md", "docs/models.md", "packages/sglang-fl-core/README.md"):
        text = " ".join((ROOT / page).read_text().split())
        told = re.findall(r"(\d+) tiny (?:models|checkpoints)\b.*? of (\d+) families", text)
        assert told == [(str(len(rows)), str(len(families)))], page


def test_decisions_are_numbered_one_by_one_and_architecture_names_each():
    decisions = sorted((ROOT / "docs/adr").glob("0*.md"))
    assert [page.name[:4] for page in decisions] == [f"{i:04}" for i in range(1, len(decisions) + 1)]
    named = re.findall(r"\(adr/(0.*?\.md)\)", (ROOT / "docs/architecture.md").read_text())
    assert {page.name for page in decisions} <= set(named)
    for page in decisions:
        assert page.read_text().startswith(f"# {page.name[:4]} ")


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_package_can_be_released_alone(package: Path):
    (source,) = (package / "src").iterdir()
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "tests", "changelog.d"):
        assert (package / name).exists(), name
    assert (source / "py.typed").exists()
    assert (package / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert f"/{package.relative_to(ROOT)}/" in (ROOT / "CODEOWNERS").read_text()
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    assert f"{package.name}-v*" in workflow[True]["push"]["tags"]  # YAML reads the key "on" as true


def test_ci_runs_every_session_that_nox_runs_by_default():
    sessions = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["session"]["strategy"]
    by_default = r"@nox\.session(?:\((?!.*default=False).*\))?\ndef (\w+)"
    named = re.findall(by_default, (ROOT / "noxfile.py").read_text())
    assert sorted(sessions["matrix"]["session"]) == sorted(named)


WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
TEMPLATE = CORE / "scaffold/template/github/release.yml.tmpl"


@pytest.mark.parametrize("workflow", [*WORKFLOWS, TEMPLATE], ids=lambda path: path.name)
def test_a_workflow_uses_actions_by_their_commit_and_may_only_read(workflow: Path):
    text = workflow.read_text()
    used = re.findall(r"uses: (.+)", text)
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", action), action
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_sessions_that_there_are(workflow: Path):
    noxfile = (ROOT / "noxfile.py").read_text()
    there = set(re.findall(r"^def (\w+)\(session: nox.Session", noxfile, re.MULTILINE))
    text = workflow.read_text()
    named = re.findall(r"nox -s ([^$\n\"-]+)", text)
    sessions = {word for names in named for word in names.split()}
    for job in yaml.safe_load(text)["jobs"].values():
        sessions |= set(job.get("strategy", {}).get("matrix", {}).get("session", ()))
    assert sessions
    assert {session.partition("(")[0] for session in sessions} <= there


@pytest.mark.parametrize(
    "form", sorted(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml")), ids=lambda path: path.name
)
def test_a_form_for_issues_is_one(form: Path):
    read = yaml.safe_load(form.read_text())
    if form.stem == "config":
        assert read == {"blank_issues_enabled": False}
        return
    assert {"name", "description", "body"} <= read.keys()
    for field in read["body"]:
        assert field["attributes"]["label"], field


def test_a_release_is_published_without_a_token_and_attested():
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    assert "id-token" not in str(jobs["build"])
    assert jobs["publish"]["permissions"] == {"id-token": "write", "attestations": "write"}
    used = [step.get("uses", "").partition("@")[0] for step in jobs["publish"]["steps"]]
    assert used.index("actions/attest-build-provenance") < used.index("pypa/gh-action-pypi-publish")
    assert "secrets." not in str(jobs)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_changed_source_has_a_changelog_fragment(package: Path):
    tags = git("tag", "--list", f"{package.name}-v*", "--sort=-version:refname").split()
    changelog = (package / "CHANGELOG.md").read_text()
    if tags:
        version = version_of(package)
        is_released_now = f"\n## {version} " in changelog and f"{package.name}-v{version}" not in tags
        is_told = is_released_now or not git("diff", "--name-only", tags[0], "--", f"{package}/src")
    else:  # a copy without tags cannot know what has changed since
        is_told = "\n## " in changelog
    assert is_told or list((package / "changelog.d").glob("*.md"))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_fragment_is_one_item_of_the_changelog(package: Path):
    """Towncrier puts the hyphen in front of it: one that has its own would be a list in a list."""
    fragments = (package / "changelog.d").glob("*.md")
    assert [path.name for path in fragments if re.search(r"^\s*[-*] ", path.read_text(), re.MULTILINE)] == []


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_only_settings_reads_the_environment():
    readers = {
        path.name
        for path in ROOT.glob("packages/*/src/**/*.py")
        if re.search(r"os\.(environ|getenv)", path.read_text()) and path.parent != CORE / "settings"
    }
    # foreign.py looks at what NCCL, Gloo, Triton and the drivers will read, redaction.py at secrets,
    # platform.py sets what SGLang reads, examinations.py hands all on to a process; of ours they read none.
    assert readers == {"foreign.py", "redaction.py", "platform.py", "examinations.py"}


def test_each_check_of_doctor_is_in_the_table_of_symptoms():
    table = (ROOT / "docs" / "debugging.md").read_text()
    names = [check.__name__.replace("_", "-") for check in CHECKS]
    assert [name for name in names if f"`{name}`" not in table] == []


SOURCES = sorted(ROOT.glob("packages/*/src/**/*.py"))
TESTS = sorted(file for folder in ("tests", "packages/*/tests") for file in ROOT.glob(f"{folder}/**/*.py"))


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=lambda path: path.stem)
def test_a_file_has_one_subject(path: Path):
    assert len(path.read_text().splitlines()) <= 500


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_source_file_says_what_it_is_for(path: Path):
    assert ast.get_docstring(ast.parse(path.read_text())) or path.name == "_version.py"


def names_at_top(file: Path) -> set[str]:
    """Return the names that a file binds outside of its functions and classes."""
    statements = ast.parse(file.read_text()).body
    defined = {node.name for node in statements if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assigned = {
        node.id
        for statement in statements
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef)
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    imported = {alias.asname or alias.name for alias in imports(statements)}
    return defined | assigned | imported


def imports(statements: list[ast.stmt]) -> list[ast.alias]:
    found = [node for node in statements if isinstance(node, ast.Import | ast.ImportFrom)]
    return [alias for node in found for alias in node.names]


def test_what_tests_import_of_each_other_is_there():
    """In those of a GPU too, which no session on a CPU collects."""
    missing = []
    for path in TESTS:
        for node in ast.walk(ast.parse(path.read_text())):
            file = ROOT / f"{str(getattr(node, 'module', '')).replace('.', '/')}.py"
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("tests.") and file.exists():
                names = {alias.name for alias in node.names} - {"*"} - names_at_top(file)
                missing += [f"{path.name}: {name}" for name in sorted(names)]
    assert missing == []
