"""FlagGems' kernels that are known to be wrong or unsafe on an NPU, by their source in 5.0.2.

Each has a reproduction, which a test runs on a chip: it returns as long as the fault is there.
"""

from sglang_fl.vendor import Quarantined, load_target

__all__ = ["QUARANTINE", "memory_grows_with_the_square_of_the_tokens", "rows_are_left_unwritten"]

_LIBRARY, _VERSIONS = "flag-gems", ">=5.0.2,<6"

QUARANTINE = (
    Quarantined(
        "rms_norm",
        "flagos",
        reason="with a residual it leaves rows past 65535 unwritten on an NPU",
        library=_LIBRARY,
        versions=_VERSIONS,
        reproduction="sglang_fl_ascend.quarantine:rows_are_left_unwritten",
    ),
    Quarantined(
        "rotary_embedding",
        "flagos",
        reason="on an NPU it needs memory that grows with the square of the tokens",
        library=_LIBRARY,
        versions=_VERSIONS,
        reproduction="sglang_fl_ascend.quarantine:memory_grows_with_the_square_of_the_tokens",
    ),
)


def rows_are_left_unwritten() -> None:
    """Norm more rows than the kernel has programs.

    Raises
    ------
    AssertionError : the last row is right
    """
    import torch

    rms_norm = load_target("sglang_fl.flagos.rms_norm:rms_norm")
    x = torch.ones(65536 + 8, 128, device="npu")
    normed, _ = rms_norm(x, torch.ones(128, device="npu"), 0.0, torch.ones_like(x))
    if bool((normed[-1] - 1).abs().max() < 1e-3):  # twos, normed to ones
        raise AssertionError("the last row is right")


def memory_grows_with_the_square_of_the_tokens() -> None:
    """Rotate some tokens, then twice as many.

    Raises
    ------
    AssertionError : they need no more than three times the memory
    """
    fewer, more = (_peak_of_rotation(tokens) for tokens in (4096, 8192))
    if more <= 3 * fewer:
        raise AssertionError(f"{fewer} bytes, then {more}")


def _peak_of_rotation(tokens: int) -> int:
    import torch

    rotary_embedding = load_target("sglang_fl.flagos.rotary_embedding:rotary_embedding")
    npu = torch.get_device_module("npu")
    x = torch.ones(tokens, 64, device="npu")
    cache, positions = torch.ones(tokens, 64, device="npu"), torch.arange(tokens, device="npu")
    npu.reset_peak_memory_stats()
    before = npu.memory_allocated()
    rotary_embedding(positions, x, x.clone(), cache, 64, True)
    return int(npu.max_memory_allocated() - before)
