"""The built-in vendor ``cpu``: every op by its reference. Chosen where no chip's vendor answers."""

from sglang_fl.vendor import CORE_API, Vendor

__all__ = ["CPU", "MEM_FRACTION_STATIC"]

#: Share of the memory for weights and KV cache. On a CPU it is the host's memory, which other
#: processes need too; SGLang's own guess, made for dedicated accelerators, takes nearly all of it.
MEM_FRACTION_STATIC = 0.5


def why_unavailable() -> str | None:
    """Return None: PyTorch runs on every CPU."""
    return None


CPU = Vendor(
    "cpu",
    device_type="cpu",
    core_api=CORE_API,
    probe="sglang_fl.registry.cpu:why_unavailable",
    platform="sglang_fl.sglang_adapter.cpu_platform.CpuPlatform",
)
