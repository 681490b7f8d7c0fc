"""What core needs to know to simulate the chip: ``SGLANG_FL_SIMULATED=toychip``."""

from sglang_fl.conformance.simulated import SimulatedChip

__all__ = ["CHIP"]

CHIP = SimulatedChip("toychip", process_group="toychip_ccl", stand_ins={"torch_toychip": None})
