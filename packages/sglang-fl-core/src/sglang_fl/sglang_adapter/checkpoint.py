"""The folder of a checkpoint, looked at before PyTorch and SGLang are imported."""

from pathlib import Path

from sglang_fl.errors import SettingsError
from sglang_fl.logs.json_text import read_json

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
        config = read_json(Path(model) / "config.json")
    except ValueError as error:
        raise SettingsError(f"--model {model!r}: config.json: {error}. {remedy}") from None
    try:
        return int(config.get("vocab_size") or config["text_config"]["vocab_size"])
    except (ValueError, KeyError, TypeError, AttributeError):
        reason = "its config.json names no vocab_size that is a number"
    raise SettingsError(f"--model {model!r}: {reason}. {remedy}")
