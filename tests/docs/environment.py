"""The place in which a page's blocks run: a folder and an environment of their own."""

import os
import sys
import venv
from pathlib import Path

__all__ = ["make_place"]

ROOT = Path(__file__).parents[2]
#: What the pages find where they are tried: they speak of a checkout.
BESIDE = ("packages", "tests", "benchmarks", "demo", "release", "pyproject.toml")
#: The commands of the environment, by the modules that they run.
COMMANDS = {"pip": "pip", "pytest": "pytest", "sglang-fl": "sglang_fl"}


def make_place(folder: Path, model: Path) -> dict[str, str]:
    """Fill an empty folder as a reader's would be, and return the variables with which blocks run in it.

    What a block installs goes into an environment there, on top of the one that runs the tests. ``MODEL`` and
    ``tiny/model`` are a tiny model.
    """
    for name in BESIDE:
        (folder / name).symlink_to(ROOT / name)
    (folder / "MODEL").symlink_to(model)
    (folder / "tiny").mkdir()
    (folder / "tiny/model").symlink_to(model)
    environment = folder / ".venv"
    venv.create(environment, with_pip=False)
    major, minor = sys.version_info[:2]
    own = environment / f"lib/python{major}.{minor}/site-packages"
    below = [path for path in sys.path if path.endswith("site-packages")]
    lines = [f"import site; site.addsitedir({path!r})\n" for path in below]
    (own / "below.pth").write_text("".join(lines))
    for command, module in COMMANDS.items():
        script = environment / "bin" / command
        script.write_text(f'#!/bin/sh\nexec {environment}/bin/python -m {module} "$@"\n')
        script.chmod(0o755)
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("SGLANG_", "PYTHONPATH"))
    }
    return kept | {
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "200",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip negates it: not isolated
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INDEX": "1",
    }
