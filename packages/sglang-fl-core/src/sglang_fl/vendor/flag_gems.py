"""FlagGems as an implementation: its calls are the same on every chip, so they stand once, in ``flagos``."""

from collections.abc import Callable
from typing import Any

from sglang_fl.errors import VendorError
from sglang_fl.vendor.aten import AtenChoice, AtenKernel, AtenOffer, AtenQuarantined
from sglang_fl.vendor.impls import BackendKind, OpImpl
from sglang_fl.vendor.targets import load_target

__all__ = ["flag_gems_aten", "flag_gems_aten_kernel", "flag_gems_impl"]


def flag_gems_aten(
    choices: tuple[AtenChoice, ...] = (), quarantine: tuple[AtenQuarantined, ...] = ()
) -> AtenOffer:
    """Return the offer of FlagGems' ATen kernels, with those that FlagGems has for this vendor's chip.

    FlagGems finds the chip by itself unless ``GEMS_VENDOR`` names it; see ``Vendor.environment``.
    """
    return AtenOffer(
        ops="sglang_fl.flagos.aten_ops:ops",
        kernels="sglang_fl.flagos.aten:kernels",
        requires=("flag_gems", "triton"),
        choices=choices,
        quarantine=quarantine,
    )


def flag_gems_aten_kernel(name: str) -> Callable[..., Any]:
    """Return one of FlagGems' ATen kernels, for the reproduction of its fault.

    Parameters
    ----------
    name : of the ATen op with its overload, ``lt.Tensor``, or of FlagGems' function, ``lt``

    Raises
    ------
    VendorError : FlagGems offers no such kernel on this machine
    """
    kernels: tuple[AtenKernel, ...] = load_target("sglang_fl.flagos.aten:kernels")()
    for kernel in kernels:
        if name in (kernel.overload, kernel.name):
            return kernel.function
    raise VendorError(f"FlagGems has no ATen kernel {name!r} on this machine")


def flag_gems_impl(op: str, impl_id: str = "flagos") -> OpImpl:
    """Return the implementation of an op by core's FlagGems call, which is the same on every chip.

    Parameters
    ----------
    op : the op's name
    impl_id : ``flagos.flag_gems`` where the vendor has a portable kernel of its own as well
    """
    target = f"sglang_fl.flagos.{op}:{op}"
    return OpImpl(op, BackendKind.FLAGOS, impl_id, target, requires=("flag_gems", "triton"))
