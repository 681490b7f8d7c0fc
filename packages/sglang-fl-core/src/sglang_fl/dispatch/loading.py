"""Load the kernel of an implementation, once in each process."""

from sglang_fl.dispatch.faults import Fault, is_out_of_memory
from sglang_fl.ops import Kernel, Op
from sglang_fl.vendor import OpImpl, load_target

__all__ = ["load_kernel"]

_loaded: dict[OpImpl, Kernel | Fault] = {}


def load_kernel(op: Op, impl: OpImpl, strict: bool = False) -> Kernel | Fault:
    """Import an implementation's kernel and hold its signature against the contract.

    A model asks for the same kernel in every layer; one that could not be loaded is not tried again.

    Returns
    -------
    Kernel | Fault : the function, or what was wrong

    Raises
    ------
    Exception : memory ran out; or whatever was wrong, if strict
    """
    found = _loaded.get(impl)
    if found is not None and not (strict and isinstance(found, Fault)):
        return found
    try:
        kernel = load_target(impl.target)
        op.check_signature(kernel)
    except Exception as error:
        if strict or is_out_of_memory(error):
            raise
        _loaded[impl] = Fault.of(error)
    else:
        _loaded[impl] = kernel
    return _loaded[impl]
