"""What a dispatch log says, for tests in one process."""

from pathlib import Path

__all__ = ["told"]


def told(log: Path) -> list[str]:
    """Return its lines without what all of them begin with."""
    return [line.removeprefix("[OOT-DISPATCH] ") for line in log.read_text().splitlines()]
