"""What has been measured so far, in a folder: a run that was interrupted goes on where it was.

One run at a time has the folder: two at once would lose what the other has measured, and disturb its times.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sglang_fl.errors import SettingsError
from sglang_fl.tune.decide import Judged, Measured, Timed

__all__ = ["State", "open_state"]

_FILE = "state.json"


class State:
    """The measurements of one model with one launch line under the same settings.

    Parameters
    ----------
    folder : that of this model, launch line and settings
    versions : of what was measured with
    data : what is known so far
    lock : descriptor of a locked file, which ``close`` closes
    """

    def __init__(self, folder: Path, versions: Mapping[str, str], data: dict[str, Any], lock: int) -> None:
        self.folder = folder
        self._lock = lock
        self._data = {"versions": dict(versions), "recorded": {}, "ops": {}, "starts": {}, "ran": [], **data}

    def close(self) -> None:
        """Let another run have the folder."""
        os.close(self._lock)

    @property
    def calls(self) -> Path:
        """The folder of the model's recorded calls."""
        return self.folder / "calls"

    def recorded(self, group: Sequence[str]) -> float | None:
        """Return how many seconds the engine took to start that recorded these ops, or None."""
        found = self._data["recorded"].get(",".join(group))
        return float(found["seconds"]) if found else None

    def has_unmeasured(self, group: Sequence[str], ops: Collection[str]) -> bool:
        """Whether calls of some of these ops were recorded with a group and are not measured."""
        recorded = self._data["recorded"][",".join(group)]["layers"]
        return any(self.measured(op) is None for op in recorded if op in ops)

    @property
    def layers(self) -> dict[str, list[str]]:
        """The layer classes that call each op, of those that the model calls."""
        return {
            op: names for found in self._data["recorded"].values() for op, names in found["layers"].items()
        }

    def keep_recorded(
        self, group: Sequence[str], seconds: float, layers: Mapping[str, Sequence[str]]
    ) -> None:
        """Keep that the calls of these ops are recorded."""
        self._data["recorded"][",".join(group)] = {"seconds": seconds, "layers": layers}
        self._save()

    def measured(self, op: str) -> Measured | None:
        """Return what was measured of an op, or None."""
        found = self._data["ops"].get(op)
        if found is None:
            return None
        judged = {impl: Judged(**said) for impl, said in found["judged"].items()}
        timed = tuple(Timed(**said) for said in found["timed"])
        return Measured(op, found["present"], judged, timed, found["trouble"], found["calls"])

    def keep_measured(self, found: Measured) -> None:
        """Keep what was measured of an op."""
        self._data["ops"][found.op] = dataclasses.asdict(found)
        self._save()

    def starts(self, side: str) -> list[dict[str, list[float]]]:
        """Return the starts of an engine: of each the throughputs by workload."""
        return list(self._data["starts"].get(side, ()))

    def keep_start(self, side: str, figures: Mapping[str, Sequence[float]]) -> None:
        """Keep one start more."""
        self._data["starts"].setdefault(side, []).append(figures)
        self._save()

    def forget_starts(self, sides: Sequence[str], first: int) -> None:
        """Drop the starts of engines from this round on."""
        for side in sides:
            del self._data["starts"].get(side, [])[first:]
        self._save()

    @property
    def ran(self) -> list[str]:
        """The ATen ops that an engine was seen to run on the vendor's kernels."""
        return list(self._data["ran"])

    def keep_ran(self, ops: Collection[str]) -> None:
        """Keep that an engine was seen to run these ATen ops on the vendor's kernels."""
        self._data["ran"] = sorted({*self.ran, *ops})
        self._save()

    def _save(self) -> None:
        path = self.folder / _FILE
        half = path.with_suffix(".part")
        try:
            half.write_text(json.dumps(self._data, indent=1))
            half.replace(path)
        except OSError as error:
            reason = error.strerror or error
            raise SettingsError(f"--folder {str(self.folder.parent)!r}: {reason}: {path}") from None

    def require_readable(self) -> None:
        """Raise ``ValueError`` where something in it is not as this class has written it."""
        if not all(isinstance(self._data[name], dict) for name in ("recorded", "ops", "starts")):
            raise ValueError("not as it was written")
        try:
            for op in self._data["ops"]:
                self.measured(op)
            for names in self.layers.values():
                ",".join(names)
            [float(found["seconds"]) for found in self._data["recorded"].values()]
            for starts in self._data["starts"].values():
                [float(figure) for start in starts for figures in start.values() for figure in figures]
            ",".join(self.ran)
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError(str(error)) from None


def open_state(within: Path, key: Mapping[str, Any], versions: Mapping[str, str], is_fresh: bool) -> State:
    """Return the state of a model, launch line and settings, made if there is none.

    Parameters
    ----------
    within : the folder of all states
    key : what makes measurements those of another run
    versions : of what is measured with
    is_fresh : whether what is there is thrown away

    Raises
    ------
    SettingsError : it cannot be read or made, was measured with other versions, or another run has it
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    folder = within / name
    lock = None
    try:
        within.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = _locked(within / f"{name}.lock")
        if is_fresh and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True, mode=0o700)
        data = _read(folder / _FILE)
        _refuse_other_versions(folder, data.get("versions", versions), versions)
        state = State(folder, versions, data, lock)
        state.require_readable()
        lock = None
        return state
    except BlockingIOError:
        raise SettingsError(
            f"{folder}: another sglang-fl tune is measuring this. Wait for it, or name another --folder."
        ) from None
    except OSError as error:
        raise SettingsError(f"--folder {str(within)!r}: {error.strerror or error}: {folder}") from None
    except ValueError:
        raise SettingsError(f"{folder / _FILE}: it cannot be read. --fresh measures anew.") from None
    finally:
        if lock is not None:
            os.close(lock)


def _locked(path: Path) -> int:
    """Return the descriptor of a file that no other process has locked.

    Raises
    ------
    BlockingIOError : one has
    OSError : it cannot be made or locked
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _read(file: Path) -> dict[str, Any]:
    """Return what is in the file; nothing where there is none.

    Raises
    ------
    OSError, ValueError : it cannot be read
    """
    data = json.loads(file.read_text()) if file.exists() else {}
    if not isinstance(data, dict) or not isinstance(data.get("versions", {}), dict):
        raise ValueError("not as it was written")
    return data


def _refuse_other_versions(folder: Path, then: Mapping[str, str], now: Mapping[str, str]) -> None:
    changed = [
        f"{name} {then.get(name, 'none')} then, {now.get(name, 'none')} now"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]
    if changed:
        raise SettingsError(
            f"{folder} was measured with other versions: {'; '.join(changed)}. --fresh measures anew."
        )
