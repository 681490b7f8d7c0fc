"""The key of a server that is asked as its client: no setting, because a server has no use for it."""

import os

__all__ = ["API_KEY", "api_key"]

#: What ``sglang-fl compare`` sends where no ``--api-key`` is given.
API_KEY = "SGLANG_FL_API_KEY"


def api_key() -> str | None:
    """Return the key in the environment; an empty one counts as none."""
    return os.environ.get(API_KEY) or None
