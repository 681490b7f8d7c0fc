"""Is a toychip chip here?"""

from sglang_fl.vendor import why_no_device

__all__ = ["why_unavailable"]


def why_unavailable() -> str | None:
    """Return None where PyTorch sees the chip, else the reason. Cheap, and never raises."""
    return why_no_device("torch_toychip", "toychip")
