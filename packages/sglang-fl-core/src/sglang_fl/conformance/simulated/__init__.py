"""The simulated chip: a PyTorch device over host memory that takes the name of any chip.

Tensors on it are no CPU tensors: they have the chip's device type and dispatch key, a kernel registered for
``PrivateUse1`` runs on them, and what a real chip refuses is refused. Numerics and speed are the CPU's, and
everything is done when a call returns. ``docs/simulated-chip.md`` says what that can prove, and what not.
"""

from sglang_fl.conformance.simulated.chip import GROUP, SimulatedChip, find_chip, load, loaded_chip
from sglang_fl.conformance.simulated.emulation import emulated

__all__ = ["GROUP", "SimulatedChip", "emulated", "find_chip", "load", "loaded_chip"]
