"""Files that a command's options name for its results: looked at before what takes minutes to hours."""

import itertools
from collections.abc import Mapping
from pathlib import Path

from sglang_fl.errors import SettingsError, quoted
from sglang_fl.logs.shared_file import check_appendable, is_same_file
from sglang_fl.settings import Settings
from sglang_fl.settings.contradictions import refuse_a_file_in_use

__all__ = ["check_outputs"]


def check_outputs(outputs: Mapping[str, Path], settings: Settings | None = None) -> None:
    """Refuse files that cannot be written, or that would overwrite each other or a file in use.

    Parameters
    ----------
    outputs : the files by their options
    settings : whose files are in use; None: nobody's

    Raises
    ------
    SettingsError : the option, the file and the reason
    """
    for option, path in outputs.items():
        try:
            check_appendable(path)
        except OSError as error:
            raise SettingsError(f"{option} {quoted(str(path))}: {error.strerror or error}") from None
        if settings is not None:
            refuse_a_file_in_use(settings, option, path)
    for (one, first), (other, second) in itertools.combinations(outputs.items(), 2):
        if is_same_file(first, second):
            raise SettingsError(f"{one} and {other} name the same file")
