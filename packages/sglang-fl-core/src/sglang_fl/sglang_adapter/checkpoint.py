"""The folder of a checkpoint, looked at before PyTorch and SGLang are imported."""

import json
from pathlib import Path

from sglang_fl.errors import SettingsError
from sglang_fl.logs.shared_file import open_for_reading

__all__ = ["vocabulary_of"]


def vocabulary_of(model: str) -> int:
    """Return the number of a checkpoint's tokens.

    Parameters
    ----------
    model : as the user has written it

    Raises
    ------
    SettingsError : there is no such folder, or it holds no checkpoint
    """
    remedy = "Name the folder of a checkpoint."
    if not model or not Path(model).is_dir():
        raise SettingsError(f"--model {model!r}: there is no such folder. {remedy}")
    try:
        with open_for_reading(Path(model) / "config.json") as file:
            config = json.loads(file.read())
        return int(config.get("vocab_size") or config["text_config"]["vocab_size"])
    except OSError as error:
        reason = f"{error.strerror or error}: config.json"
    except (ValueError, KeyError, TypeError, AttributeError):
        reason = "its config.json names no vocab_size"
    raise SettingsError(f"--model {model!r}: {reason}. {remedy}")
