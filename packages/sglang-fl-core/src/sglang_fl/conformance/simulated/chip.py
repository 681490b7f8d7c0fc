"""What a simulated chip is called, and how it comes into a process."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path

import torch
from torch.utils.backend_registration import (
    generate_methods_for_privateuse1_backend,
    rename_privateuse1_backend,
)

from sglang_fl.conformance.simulated import build, native, process_group, stand_ins, torch_module
from sglang_fl.errors import SettingsError, VendorError, choices
from sglang_fl.foreign_names import NAMES, PUBLISHED
from sglang_fl.logs.shared_file import open_for_appending

__all__ = ["GROUP", "SimulatedChip", "find_chip", "load", "loaded_chip"]

#: Entry points of this group name ``SimulatedChip`` objects; an entry is called as its vendor.
GROUP = "sglang_fl.simulated"
_UNNAMED = "privateuseone"


@dataclass(frozen=True)
class SimulatedChip:
    """What of a chip can be seen from the outside.

    Parameters
    ----------
    device_type : PyTorch's string for the device, ``mlu``; the module ``torch.<device_type>`` appears
    process_group : the name of its backend of ``torch.distributed``, ``cncl``; gloo serves it
    stand_ins : packages of the vendor that can be imported while the chip is simulated, ``torch_mlu``; each
        with the module that stands in for it, or None for an empty one. One that is really installed wins
    importable : packages of which every module and name can be imported and nothing can be called; for
        names that SGLang imports wherever it sees this device
    platform : the class path of an SGLang platform that stands in for SGLang's own, only where that asks for
        kernels which are not emulated
    devices : how many of them a process sees
    memory : bytes of each; more cannot be allocated
    """

    device_type: str
    process_group: str
    stand_ins: Mapping[str, str | None] = field(default_factory=dict, hash=False)
    importable: tuple[str, ...] = ()
    platform: str | None = None
    devices: int = 2
    memory: int = 4 << 30

    def __post_init__(self) -> None:
        if not self.device_type.isidentifier() or self.device_type in ("cpu", "cuda", "meta"):
            raise VendorError(f"SimulatedChip: {self.device_type!r} cannot be the name of a device")
        if not 1 <= self.devices <= native.MOST_DEVICES:
            raise VendorError(
                f"SimulatedChip: devices={self.devices} is not within 1 to {native.MOST_DEVICES}"
            )


_loaded: list[SimulatedChip] = []


def loaded_chip() -> SimulatedChip | None:
    """Return the chip that this process simulates, if any."""
    return _loaded[0] if _loaded else None


def find_chip(name: str, title: str = "SGLANG_FL_SIMULATED") -> SimulatedChip:
    """Return the simulated chip that an installed vendor package offers.

    Parameters
    ----------
    name : the chip's
    title : where the user named it

    Raises
    ------
    SettingsError : no installed package offers one of that name
    VendorError : what it offers is none, or its package cannot be imported
    """
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points:
        vendor = NAMES.get(name.lower(), (name.lower(),))[0]
        is_ours = vendor in PUBLISHED and vendor not in points
        remedy = f" pip install sglang-fl-{vendor}, or unset it." if is_ours else ""
        raise SettingsError(
            f"{title}={name!r}: no installed vendor package offers that chip. {choices(name, points)}{remedy}"
        )
    point = points[name]
    package = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
    try:
        chip = point.load()
    except (Exception, SystemExit) as error:
        raise VendorError(
            f"{title}={name!r}: {package} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(chip, SimulatedChip):
        raise VendorError(
            f"the entry point {name} of {GROUP} names a {type(chip).__name__}, no SimulatedChip"
        )
    return chip


def load(chip: SimulatedChip, record: Path | None = None) -> None:
    """Bring a simulated chip into this process, for good: a process has one, and it cannot be taken out.

    Parameters
    ----------
    chip : loading the same one again does nothing, or begins another record
    record : a file to which every ATen op and every member of ``torch.<device_type>`` that the chip is asked
        for is appended once; see ``docs/simulated-chip.md``

    Raises
    ------
    SettingsError : there is no C++ compiler, the record cannot be opened, or this process has already got a
        chip of another name
    """
    if _loaded:
        if _loaded[0] != chip:
            raise SettingsError(
                f"this process simulates {_loaded[0].device_type} already, not {chip.device_type}"
            )
        if record is not None:
            _begin_record(record)
        return
    taken = torch._C._get_privateuse1_backend_name()
    if taken != _UNNAMED:
        raise SettingsError(f"{chip.device_type} cannot be simulated: this process has a real {taken} device")
    native.load(build.library(), chip.device_type, chip.devices, chip.memory)
    if record is not None:
        _begin_record(record)
    rename_privateuse1_backend(chip.device_type)
    torch._register_device_module(chip.device_type, torch_module.make(chip.device_type))
    generate_methods_for_privateuse1_backend()
    process_group.register(chip.process_group, chip.device_type)
    stand_ins.install(chip.stand_ins, chip.importable)
    _loaded.append(chip)
    importlib.invalidate_caches()


def _begin_record(record: Path) -> None:
    try:
        native.record(open_for_appending(record))
    except OSError as error:
        raise SettingsError(
            f"SGLANG_FL_SIMULATED_RECORD={str(record)!r}: the file cannot be opened for appending "
            f"({error.strerror}). Valid: a file in an existing, writable folder."
        ) from error
