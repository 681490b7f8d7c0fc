"""Write the pictures: ``python -m docs.pictures``; with ``--check`` name those that are behind."""

import sys
from pathlib import Path

from docs.pictures.diagrams import DIAGRAMS
from docs.pictures.plots import PLOTS
from docs.pictures.runs import RUNS

FOLDER = Path(__file__).parent


def main() -> int:
    """Return the exit status: 1 if ``--check`` finds a picture behind."""
    is_check = sys.argv[1:] == ["--check"]
    behind = 0
    for name, draw in {**PLOTS, **DIAGRAMS, **RUNS}.items():
        path, picture = FOLDER / f"{name}.svg", draw()
        if not path.exists() or path.read_text(encoding="utf-8") != picture:
            behind += 1
            sys.stdout.write(f"docs/pictures/{name}.svg {'is behind' if is_check else 'is drawn anew'}\n")
        if not is_check:
            path.write_text(picture, encoding="utf-8")
    return int(is_check and behind > 0)


if __name__ == "__main__":
    raise SystemExit(main())
