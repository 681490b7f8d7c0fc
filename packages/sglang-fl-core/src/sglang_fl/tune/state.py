"""What has been measured so far, in a folder: a run that was interrupted goes on where it was."""

import dataclasses
import hashlib
import json
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
    """

    def __init__(self, folder: Path, versions: Mapping[str, str], data: dict[str, Any]) -> None:
        self.folder = folder
        self._data = {"versions": dict(versions), "recorded": {}, "ops": {}, "starts": {}, "ran": [], **data}

    @property
    def calls(self) -> Path:
        """The folder of the model's recorded calls."""
        return self.folder / "calls"

    def recorded(self, group: Sequence[str]) -> float | None:
        """Return how many seconds the engine took to start that recorded these ops, or None."""
        found = self._data["recorded"].get(",".join(group))
        return float(found["seconds"]) if found else None

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
        half.write_text(json.dumps(self._data, indent=1))
        half.replace(path)


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
    SettingsError : it cannot be read or made, or was measured with other versions
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    folder = within / name
    try:
        if is_fresh and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = (folder / _FILE).read_text() if (folder / _FILE).exists() else "{}"
        data = json.loads(text)
    except OSError as error:
        raise SettingsError(f"--folder {str(within)!r}: {error.strerror or error}: {folder}") from None
    except ValueError:
        raise SettingsError(f"{folder / _FILE}: it cannot be read. --fresh measures anew.") from None
    _refuse_other_versions(folder, data.get("versions", versions), versions)
    return State(folder, versions, data)


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
