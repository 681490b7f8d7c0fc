"""The references against SGLang's own PyTorch, on calls that hypothesis draws, in float32.

There both compute the same; in 16 bits SGLang rounds in between, where the references do not.
"""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings

from sglang_fl.conformance import error_in_units
from sglang_fl.ops import OPS
from tests.engine.native import native
from tests.ops.shared.distance import as_tuple
from tests.ops.shared.drawing import Drawn, calls
from tests.ops.subject import subject_of

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("name", OPS)
def test_reference_is_what_sglang_computes(name: str):
    op, subject = OPS[name], subject_of(name)
    if isinstance(subject.native, str):
        pytest.skip(subject.native)

    @settings(
        max_examples=200,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(call=calls(subject.draw, is_plain=True))
    def compare(call: Drawn) -> None:
        arguments = {key: in_dtype(value, torch.float32) for key, value in call.arguments.items()}
        theirs = native(name, dict(arguments))
        assume(theirs is not None)
        exact = {key: in_dtype(value, torch.float64) for key, value in arguments.items()}
        ours = op.results(op.reference(**arguments), arguments)
        theirs = op.results(theirs if len(theirs) > 1 else theirs[0], arguments)
        wide = tuple(in_dtype(result, torch.float64) for result in theirs)
        sizes = as_tuple(op.magnitude(wide if len(wide) > 1 else wide[0], **exact)) if op.magnitude else wide
        for mine, other, size in zip(ours, wide, sizes, strict=True):
            if not mine.is_floating_point():
                assert torch.equal(mine, other.to(mine.dtype))
                continue
            other = other.reshape(mine.shape)
            allowed = 2 * max(op.bound.single, call.bound.single if call.bound else 0, 4)
            assert error_in_units(mine, other, size.reshape(mine.shape)) <= allowed

    compare()


def in_dtype(value, dtype: torch.dtype):
    is_floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if is_floating else value
