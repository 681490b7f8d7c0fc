"""What core needs to know to simulate an MLU: ``SGLANG_FL_SIMULATED=mlu``."""

from sglang_fl.conformance.simulated import SimulatedChip

__all__ = ["CHIP"]

CHIP = SimulatedChip(
    "mlu",
    process_group="cncl",
    stand_ins={"torch_mlu": None, "torch_mlu_ops": "sglang_fl_mlu.simulated.torch_mlu_ops"},
)
