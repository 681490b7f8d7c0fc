"""Named tasks: ``nox -s tests``, ``nox -s build``.

``SGLANG_FL_CORE`` names the sglang-fl-core to test with, as pip does: a folder, a wheel, a URL. Without it
pip takes the one of the package index.
"""

import os

import nox

nox.options.sessions = ["tests"]

CORE = os.environ.get("SGLANG_FL_CORE")


@nox.session
def tests(session: nox.Session) -> None:
    """The conformance kit and this package's own tests."""
    session.install(*filter(None, [CORE]), "-e", ".", "pytest>=8")
    session.run("python", "-m", "pytest", "tests", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Wheel and sdist, checked, in dist/."""
    session.install("build", "twine")
    session.run("python", "-m", "build")
    session.run("python", "-m", "twine", "check", "--strict", "dist/*")
