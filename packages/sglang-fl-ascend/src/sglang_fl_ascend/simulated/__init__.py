"""What core needs to know to simulate an Ascend NPU: ``SGLANG_FL_SIMULATED=ascend``."""

from sglang_fl.conformance.simulated import SimulatedChip

__all__ = ["CHIP"]

CHIP = SimulatedChip(
    "npu",
    process_group="hccl",
    stand_ins={
        "torch_npu": "sglang_fl_ascend.simulated.torch_npu",
        "acl": "sglang_fl_ascend.simulated.acl",
        "sgl_kernel_npu.norm.split_qkv_rmsnorm_rope": "sglang_fl_ascend.simulated.sgl_kernel_npu",
    },
    platform="sglang_fl_ascend.simulated.platform.SimulatedNpuPlatform",
    importable=("torch_npu", "sgl_kernel_npu", "custom_ops", "torchair", "zbal"),
)
