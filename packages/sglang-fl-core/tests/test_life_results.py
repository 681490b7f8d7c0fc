"""The life of a layer: what a kernel returns or harms, calls without rows, memory that runs out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import norm_layers
from norm_layers import Layer, arguments, assert_right, assert_untouched
from sglang_fl.dispatch.life import MOST_EXCLUDED
from sglang_fl.dispatch.trial import NextCandidateError, Trial
from sglang_fl.errors import ContractError, VendorError
from sglang_fl.ops import OPS
from sglang_fl.vendor import load_target

#: Fixtures.
layer, module = norm_layers.layer, norm_layers.module
ROWS = """
    from sglang_fl.ops import OPS

    def rms_norm(x, weight, eps, residual=None):
        if x.numel():
            raise RuntimeError("launch failed")  # nothing is launched for no rows
        return OPS["rms_norm"].reference(x, weight, eps, residual)

    def empty_fails(x, weight, eps, residual=None):
        if not x.numel():
            raise RuntimeError("a grid of nothing")
        return OPS["rms_norm"].reference(x, weight, eps, residual)
"""


def test_call_without_rows_decides_and_logs_nothing(layer: Callable[..., Layer], write_module):
    module = write_module(ROWS)
    rms = layer(f"{module}:rms_norm", "reference")
    for _ in range(MOST_EXCLUDED + 1):
        assert rms(x=torch.empty(0, 48), weight=torch.ones(48), eps=1e-6).shape == (0, 48)
    assert (rms.log, rms.commits) == ([], [])
    assert_right(rms(**arguments()))
    assert rms.log == ["reference(reference)"]


def test_kernel_that_fails_without_rows_is_replaced_too(layer: Callable[..., Layer], write_module):
    rms = layer(f"{write_module(ROWS)}:empty_fails", "reference")
    assert rms(x=torch.empty(0, 48), weight=torch.ones(48), eps=1e-6).shape == (0, 48)
    assert rms.log == []


WRONG = """
    import torch
    from sglang_fl.ops import OPS

    def reference(*args):
        return OPS["rms_norm"].reference(*args)

    def nothing(x, weight, eps, residual=None):
        return None

    def one_of_two(x, weight, eps, residual=None):
        return reference(x, weight, eps, residual)[0]

    def wide(x, weight, eps, residual=None):
        return tuple(t.double() for t in reference(x, weight, eps, residual))

    def short(x, weight, eps, residual=None):
        return tuple(t[:-1] for t in reference(x, weight, eps, residual))
"""


@pytest.mark.parametrize(
    ("name", "returned"),
    [
        ("nothing", "NoneType"),
        ("one_of_two", r"float32 \(6, 48\)"),
        ("wide", r"\(float64 \(6, 48\), float64 \(6, 48\)\)"),
        ("short", r"\(float32 \(5, 48\), float32 \(5, 48\)\)"),
    ],
)
def test_what_a_kernel_returns_at_first_is_held_against_the_contract(
    layer: Callable[..., Layer], write_module, caplog: pytest.LogCaptureFixture, name: str, returned: str
):
    rms = layer(f"{write_module(WRONG)}:{name}", "reference")
    assert_right(rms(**arguments()))
    assert rms.log == ["reference(reference)"]
    assert "VendorError: it returned" in caplog.text
    with pytest.raises(VendorError, match=f"it returned {returned}, the contract says "):
        layer(f"{write_module(WRONG)}:{name}", strict=True)(**arguments())


SINGLE = """
    def in_a_list(x):
        return [x[:, :4].clone()]

    def elsewhere(x):
        return x[:, :4].to("meta")

    def sparse(x):
        return x[:, :4].to_sparse()
"""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("in_a_list", r"it returned \(float32 \(3, 4\)\), the contract says float32 \(3, 4\)"),
        ("elsewhere", "it returned a tensor on meta, torch.strided, and the call's are on cpu"),
        ("sparse", "it returned a tensor on cpu, torch.sparse_coo, and the call's are on cpu"),
    ],
)
def test_a_single_result_is_a_tensor_where_the_call_is(write_module, name: str, told: str):
    kernel = load_target(f"{write_module(SINGLE)}:{name}")
    with pytest.raises(VendorError, match=told):
        Trial(OPS["silu_and_mul"], kernel, strict=True)(torch.ones(3, 8))


@pytest.mark.parametrize("refusal", ["UnsupportedError", "ContractError"])
def test_a_kernel_that_refuses_after_it_has_written_hands_on_what_it_was_given(write_module, refusal: str):
    module = write_module(
        f"""
        from sglang_fl.errors import ContractError, UnsupportedError

        def rms_norm(x, weight, eps, residual=None):
            x.fill_(7)
            residual.fill_(7)
            raise {refusal}("not this call")
        """
    )
    given = arguments()
    with pytest.raises((NextCandidateError, ContractError)):
        Trial(OPS["rms_norm"], load_target(f"{module}:rms_norm"))(**given)
    assert_untouched(given)


def test_a_kernel_that_refuses_after_it_has_harmed_what_nobody_kept_ends_the_call(write_module):
    module = write_module(
        """
        from sglang_fl.errors import UnsupportedError

        def silu_and_mul(x):
            x.fill_(7)
            raise UnsupportedError("not this call")
        """
    )
    with pytest.raises(VendorError, match="it wrote x, which the contract does not allow, and failed"):
        Trial(OPS["silu_and_mul"], load_target(f"{module}:silu_and_mul"))(torch.ones(3, 8))


@pytest.mark.parametrize("op", OPS.values(), ids=str)
def test_every_reference_says_what_it_returns_without_looking_at_data(op: Any):
    for case in op.cases:
        given = case.arguments(torch.bfloat16)
        like = op.results_like(given)
        outputs = op.reference(**given)
        assert op.why_not_like(outputs, like) is None


def test_memory_that_runs_out_is_raised_and_decides_nothing(layer: Callable[..., Layer], write_module):
    module = write_module(
        """
        import torch
        from sglang_fl.ops import OPS

        calls = []

        def rms_norm(x, weight, eps, residual=None):
            calls.append(1)
            if len(calls) == 1:
                x.fill_(7)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return OPS["rms_norm"].reference(x, weight, eps, residual)
        """
    )
    rms, given = layer(f"{module}:rms_norm", "reference"), arguments()
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        rms(**given)
    assert_untouched(given)
    assert (rms.log, rms.commits) == ([], [])
    assert_right(rms(**arguments()))
    assert rms.log == ["flagos(flagos." + module + ":rms_norm)"]


@pytest.mark.parametrize(
    "text",
    [
        "NPU out of memory. Tried to",
        "DefaultCPUAllocator: can't allocate memory",
        "CUDA error: out of memory",
        "Triton Error [CUDA]: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)",
        "HIP out of memory. Tried to allocate 2 GiB",
        "XPU out of memory. Tried to allocate 2 GiB",
        "call aclnnMatmul failed, error code 207001: Memory_Allocation_Failure",
    ],
)
def test_memory_that_runs_out_is_known_by_its_text_on_other_devices(
    layer: Callable[..., Layer], write_module, text: str
):
    module = write_module(f"def rms_norm(x, weight, eps, residual=None):\n    raise RuntimeError({text!r})\n")
    with pytest.raises(RuntimeError, match=text[:12]):
        layer(f"{module}:rms_norm", "reference")(**arguments())


def test_each_different_cause_is_told(
    layer: Callable[..., Layer], write_module, caplog: pytest.LogCaptureFixture
):
    module = write_module(
        """
        causes = iter(["wrong stride", "wrong stride", "no such tile"])

        def rms_norm(x, weight, eps, residual=None):
            raise RuntimeError(next(causes))
        """
    )
    for _ in range(3):
        layer(f"{module}:rms_norm", "reference")(**arguments())
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == [
        "wrong stride",
        "no such tile",
    ]


def test_a_kernel_that_harms_what_nobody_kept_ends_the_call(layer: Callable[..., Layer], write_module):
    module = write_module(
        """
        def rms_norm(x, weight, eps, residual=None):
            weight.fill_(0)
            raise RuntimeError("launch failed")
        """
    )
    with pytest.raises(VendorError, match="it wrote weight, which the contract does not allow, and failed"):
        layer(f"{module}:rms_norm", "reference")(**arguments())
