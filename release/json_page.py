"""What of ``docs/reference/json.md`` is written from the schemas beside it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from sglang_fl.cli import app

__all__ = ["blocks"]

SCHEMAS = Path(__file__).parents[1] / "docs/reference/schemas"
_TYPES = {"string": "text", "array": "list"}


def blocks() -> dict[str, str]:
    """Return a section for each schema, in the order of the commands, by the mark around them."""
    commands = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    names = sorted(path.stem for path in SCHEMAS.glob("*.json"))
    schemas = {name: json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8")) for name in names}
    ordered = sorted(names, key=lambda name: commands.index(schemas[name]["title"].split()[1]))
    return {"schemas": "\n".join(_section(name, schemas[name]) for name in ordered)}


def _section(name: str, schema: dict[str, Any]) -> str:
    kind = "A list of objects" if schema["type"] == "array" else "One object"
    told = f"{schema['description']} {kind} ([schema](schemas/{name}.json)):"
    head = [f"## {name}", f"`{schema['title']}`", told]
    rows = [f"| `{key}` | {_type(part)} | {_told(part)} |" for key, part in _keys(schema, schema)]
    return "\n\n".join([*head, "\n".join(["| key | type | is |", "|---|---|---|", *rows])]) + "\n"


def _keys(schema: dict[str, Any], whole: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each key with its path, ``phases[].pieces[].us``, and its schema."""
    if schema.get("type") == "array":
        yield from _keys(schema["items"], whole, f"{path}[]." if path else "")
        return
    for name, part in schema.get("properties", {}).items():
        yield f"{path}{name}", part
        within = f"{path}{name}" if part.get("type") == "array" else f"{path}{name}."
        yield from _keys(part, whole, within)
    of_each = schema.get("additionalProperties")
    if isinstance(of_each, dict):
        yield from _keys(of_each, whole, f"{path}NAME.")


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return f"as `{schema['$ref'].rpartition('/')[2]}`"
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    types: str | list[str] = schema["type"]
    names = types if isinstance(types, list) else [types]
    told = " or ".join(_TYPES.get(name, name) for name in names)
    if told == "list":
        return f"list of {_plural(_type(schema['items']))}"
    return told


def _plural(told: str) -> str:
    return f"{told}s" if told in ("text", "object", "number", "integer") else told


def _told(schema: dict[str, Any]) -> str:
    return str(schema.get("description", "")).replace("|", "\\|")
