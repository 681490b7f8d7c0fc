"""The container files and the unit in ``deploy/``, as tests read them."""

import json
import re
from pathlib import Path

__all__ = ["CONTAINERS", "UNIT", "health_command", "instructions"]

DEPLOY = Path(__file__).parents[1] / "deploy"
CONTAINERS = sorted(DEPLOY.glob("Containerfile.*"))
UNIT = DEPLOY / "sglang-fl.service"


def instructions(file: Path) -> list[tuple[str, str]]:
    """Return the instructions of a container file in order: its name, and what follows it on one line."""
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in joined.splitlines()]


def health_command(file: Path) -> list[str]:
    """Return the command that tells whether the server in a container is well."""
    (text,) = (text for name, text in instructions(file) if name == "HEALTHCHECK")
    command: list[str] = json.loads(text.partition(" CMD ")[2])
    return command
