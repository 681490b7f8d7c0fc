"""What commands write for programs: JSON without secrets."""

import json
import math
from typing import Any

from sglang_fl.logs.redaction import redacted

__all__ = ["json_text"]


def json_text(data: Any) -> str:
    """Return plain data as JSON, without secrets; numbers that are not finite, which JSON has not, as texts.

    Parameters
    ----------
    data : dicts, lists, texts, numbers; ``inf`` becomes ``"inf"``
    """
    return json.dumps(_finite(redacted(data)), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
