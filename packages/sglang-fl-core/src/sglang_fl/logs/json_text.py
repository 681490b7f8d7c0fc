"""JSON that commands write for programs, without secrets, and JSON in files that users name."""

import json
import math
from pathlib import Path
from typing import Any

from sglang_fl.logs.redaction import redacted
from sglang_fl.logs.shared_file import open_for_reading

__all__ = ["json_text", "read_json"]


def json_text(data: Any) -> str:
    """Return plain data as JSON, without secrets; numbers that are not finite, which JSON has not, as texts.

    Parameters
    ----------
    data : dicts, lists, texts, numbers; ``inf`` becomes ``"inf"``
    """
    return json.dumps(_finite(redacted(data)), indent=2, allow_nan=False)


def read_json(path: Path) -> Any:
    """Return what a file holds.

    Raises
    ------
    ValueError : why it cannot be read, without the file's name
    """
    try:
        with open_for_reading(path) as file:
            text = file.read()
        return json.loads(text)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise ValueError(f"it is no JSON: {where}" if text.strip() else "it is empty") from None
    except (UnicodeDecodeError, RecursionError):
        raise ValueError("it is no JSON") from None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
