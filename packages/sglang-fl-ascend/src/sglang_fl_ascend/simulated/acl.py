"""``acl``, the driver's Python interface, for the simulated NPU: what SGLang asks of it on import."""

from types import SimpleNamespace

__all__ = ["rt"]


def _device_info(device: int, attribute: int) -> tuple[int, int]:
    """Return a chip's model number and success; an invented number, of no chip that SGLang treats apart."""
    return 2202, 0


rt = SimpleNamespace(get_device_info=_device_info)
