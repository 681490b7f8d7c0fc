"""A vendor's backend of ``torch.distributed``: gloo, on the bytes of the chip's tensors."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store

from sglang_fl.conformance.simulated import native

__all__ = ["register"]

#: What PyTorch's core calls on a group, with the name that gloo has for it up to torch 2.13.
COLLECTIVES = {
    "all_gather_single": "_allgather_base",
    "all_gather_single_coalesced": "allgather_into_tensor_coalesced",
    "all_to_all_single": "alltoall_base",
    "reduce_scatter_single": "_reduce_scatter_base",
    "reduce_scatter_single_coalesced": "reduce_scatter_tensor_coalesced",
    **{
        name: name
        for name in (
            *("allgather", "allreduce", "allreduce_coalesced", "alltoall", "barrier", "broadcast", "gather"),
            *("reduce", "reduce_scatter", "scatter", "send", "recv", "recv_anysource"),
            *("_allgather_base", "_reduce_scatter_base", "alltoall_base"),
            *("allgather_into_tensor_coalesced", "reduce_scatter_tensor_coalesced"),
        )
    },
}


class ChipProcessGroup(dist.ProcessGroup):
    """A process group whose tensors lie on the chip.

    Parameters
    ----------
    name : the backend's
    store, rank, size, timeout : as ``torch.distributed`` gives them to a backend
    """

    def __init__(self, name: str, store: Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg] # one of two forms
        self._name = name
        self._group_name = ""
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)

    def getBackendName(self) -> str:  # noqa: N802 - PyTorch's name
        """Return the vendor's name of the backend."""
        return self._name

    def _set_group_name(self, name: str) -> None:
        self._group_name = name

    @property
    def group_name(self) -> str:  # type: ignore[override] # a str by another name, from 2.14 on
        """The name that PyTorch gave the group."""
        return self._group_name

    pg_name = group_name


def _collective(name: str, former: str) -> Callable[..., Any]:
    def collective(self: ChipProcessGroup, *arguments: Any, **options: Any) -> Any:
        gloo = self._gloo
        run = getattr(gloo, name, None) or getattr(gloo, former)
        work = run(*(_on_host(self, name, argument) for argument in arguments), **options)
        work.wait()
        return work

    collective.__name__ = name
    return collective


for _name, _former in COLLECTIVES.items():
    setattr(ChipProcessGroup, _name, _collective(_name, _former))


def _on_host(group: ChipProcessGroup, collective: str, argument: Any) -> Any:
    """Replace each tensor by a CPU tensor over the same bytes."""
    if isinstance(argument, list):
        return [_on_host(group, collective, item) for item in argument]
    if not isinstance(argument, Tensor):
        return argument
    chip = torch._C._get_privateuse1_backend_name()
    if argument.device.type != chip:
        raise RuntimeError(
            f"simulated {chip}: {collective} of {group.getBackendName()} got a tensor on {argument.device}"
        )
    return native.host_alias(argument)


def register(name: str, device_type: str) -> None:
    """Register the backend for a device."""

    def create(store: Store, rank: int, size: int, timeout: timedelta) -> ChipProcessGroup:
        return ChipProcessGroup(name, store, rank, size, timeout)

    dist.Backend.register_backend(name, create, devices=[device_type])
