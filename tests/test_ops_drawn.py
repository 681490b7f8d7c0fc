"""Each reference on calls that nobody thought of: as exact as it says, and it writes only what it says."""

import dataclasses
import functools

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sglang_fl.ops import OPS, Op, Outputs
from tests.ops.shared.distance import errors
from tests.ops.shared.drawing import Drawn, calls
from tests.ops.subject import subject_of

pytestmark = pytest.mark.timeout(300)

#: The same calls in every run, however slow the machine.
STEADY = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


@pytest.mark.parametrize("op", OPS.values(), ids=str)
@settings(max_examples=250, **STEADY)
@given(data=st.data())
def test_reference_keeps_its_bound_and_writes_nothing_but_what_it_updates(op: Op, data: st.DataObject):
    call = data.draw(calls(subject_of(op.name).draw))
    whole = {name: storage(value) for name, value in call.arguments.items()}
    assert errors(op, call.arguments, call.bound) == []
    for name, value in call.arguments.items():
        if isinstance(value, torch.Tensor):
            expected = unwritten(op, name, call.arguments, whole)
            assert torch.equal(expected.view(torch.uint8), storage(value).view(torch.uint8))


def storage(value: object) -> torch.Tensor | None:
    """Return a copy of all that lies under a tensor, between its strides too."""
    if not isinstance(value, torch.Tensor):
        return None
    elements = value.untyped_storage().nbytes() // value.element_size()
    return value.as_strided((elements,), (1,), 0).clone()


def unwritten(op: Op, name: str, arguments: dict, before: dict) -> torch.Tensor:
    """Return what must lie under an argument now: what was there, with the rows that were to be updated."""
    expected = before[name].clone()
    if name in op.updates:
        value, rows = arguments[name], op.written_rows(name, arguments)
        view = expected.as_strided(value.shape, value.stride(), value.storage_offset())
        view[rows] = value[rows]
    return expected


@pytest.mark.parametrize("op", OPS.values(), ids=str)
def test_one_wrong_element_is_noticed(op: Op):
    @functools.wraps(op.reference)
    def mistaken(*args: object, **kwargs: object) -> Outputs:
        outputs = op.reference(*args, **kwargs)
        if outputs == ():  # then what it updates is all of its results
            pool = op.signature.bind(*args, **kwargs).arguments[op.updates[0]]
            pool[-1:] = 1.05 * pool[-1:].double()
            return outputs
        first, *others = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        spoiled = first.contiguous().clone()
        spoiled.view(-1)[-1:] *= 1.05
        return (spoiled, *others) if others else spoiled

    wrong = dataclasses.replace(op, reference=mistaken)

    @settings(max_examples=50, phases=[Phase.generate], **STEADY)
    @given(call=calls(subject_of(op.name).draw))
    def notice(call: Drawn) -> None:
        assert errors(wrong, call.arguments, call.bound) == []

    with pytest.raises(AssertionError, match="units"):
        notice()
