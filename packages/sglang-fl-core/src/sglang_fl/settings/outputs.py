"""Files that a command's options name for its results: looked at before what takes minutes to hours."""

import itertools
from collections.abc import Mapping
from pathlib import Path

from sglang_fl.errors import SettingsError, quoted
from sglang_fl.logs.shared_file import check_appendable, is_same_file
from sglang_fl.settings import Settings
from sglang_fl.settings.contradictions import FILES, LOGS

__all__ = ["check_outputs"]


def check_outputs(outputs: Mapping[str, Path], for_settings: str | None = None) -> None:
    """Refuse files that cannot be written, or that would overwrite each other or a file in use.

    Parameters
    ----------
    outputs : the files by their options
    for_settings : the option of a settings file, which may take the place of the one in use

    Raises
    ------
    SettingsError : the option, the file and the reason; a setting that is wrong
    """
    settings = Settings.read()
    for option, path in outputs.items():
        try:
            check_appendable(path)
        except OSError as error:
            raise SettingsError(f"{option} {quoted(str(path))}: {error.strerror or error}") from None
        for name in LOGS if option == for_settings else FILES:
            used = getattr(settings, name)
            if used is not None and is_same_file(used, path):
                raise SettingsError(
                    f"{option} {quoted(str(path))} and {settings.quoted(name)} are the same file. Name two."
                )
    for (one, first), (other, second) in itertools.combinations(outputs.items(), 2):
        if is_same_file(first, second):
            raise SettingsError(f"{one} and {other} name the same file")
