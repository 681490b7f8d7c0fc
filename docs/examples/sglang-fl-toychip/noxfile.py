"""Named tasks: ``nox -s tests``, ``nox -s build``."""

import nox

nox.options.sessions = ["tests"]


@nox.session
def tests(session: nox.Session) -> None:
    """The conformance kit and this package's own tests."""
    session.install("-e", ".", "pytest>=8")
    session.run("python", "-m", "pytest", "tests", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Wheel and sdist, checked, in dist/."""
    session.install("build", "twine")
    session.run("python", "-m", "build")
    session.run("python", "-m", "twine", "check", "--strict", "dist/*")
