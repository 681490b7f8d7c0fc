"""Each op: what the tests know of it, and its reference against the formula in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sglang_fl.conformance import rows
from sglang_fl.ops import OPS, Case, Op
from tests.ops import subject
from tests.ops.shared.distance import as_numpy, as_tuple, errors
from tests.ops.shared.rotation import pairs
from tests.ops.subject import Subject, subject_of

CASES = [pytest.param(op, case, id=f"{op}-{case}") for op in OPS.values() for case in op.cases]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
# The references, called with float64, are the truth that kernels are held against.
ALL_DTYPES = [*DTYPES, torch.float64]


@pytest.mark.parametrize("op", OPS)
def test_op_is_described(op: str):
    assert isinstance(subject_of(op), Subject)


def test_nothing_is_described_but_ops():
    assert {path.stem for path in Path(subject.__file__).parent.glob("*.py")} - {"subject"} == set(OPS)


def test_what_a_description_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = "import math\nfrom tests.ops.subject import Subject\n"
    whole += "SUBJECT = Subject(math.exp, math.exp, 'none', {1: (math.exp,)})"
    sources = {
        "beam1": ("SUBJECT = None", "tests/ops/beam1.py: no SUBJECT"),
        "beam2": (whole.replace("Subject(math.exp", "Subject(None"), "tests/ops/beam2.py: no formula"),
        "beam3": (whole.replace("exp, math.exp", "exp, None"), "tests/ops/beam3.py: no draw"),
        "beam4": (whole.replace("'none'", "None"), "tests/ops/beam4.py: no native"),
        "beam5": (whole.replace("{1: (math.exp,)}", "{}"), "tests/ops/beam5.py: no wrong kernels"),
    }
    monkeypatch.setattr("tests.ops.__path__", [str(tmp_path)])
    for name, (source, message) in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
        with pytest.raises(LookupError, match=message):
            subject_of(name)
    with pytest.raises(LookupError, match=r"tests/ops/beam6\.py: there is no such file"):
        subject_of("beam6")


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize(("op", "case"), CASES)
def test_reference_keeps_the_bound_against_the_formula(op: Op, case: Case, dtype: torch.dtype):
    assert errors(op, case.arguments(dtype), case.bound) == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("residual", [False, True])
def test_rms_norm_takes_a_weight_of_any_dtype(dtype: torch.dtype, weight_dtype: torch.dtype, residual: bool):
    random = torch.Generator().manual_seed(0)
    arguments = {
        "x": torch.randn(5, 96, generator=random).to(dtype),
        "weight": torch.randn(96, generator=random).to(weight_dtype),
        "eps": 1e-5,
        "residual": torch.randn(5, 96, generator=random).to(dtype) if residual else None,
    }
    assert errors(OPS["rms_norm"], arguments) == []


@pytest.mark.parametrize(
    "case", [case for case in OPS["rotary_embedding"].cases if "kv-cache" not in case.name], ids=str
)
def test_rotary_magnitude_is_the_size_of_the_two_products(case: Case):
    given = case.arguments(torch.float64)
    real, imaginary = pairs(given["cos_sin_cache"].shape[-1], given["is_neox_style"])
    where, head_size = as_numpy(given["positions"] + given.get("offsets", 0)).reshape(-1), given["head_size"]
    cos, sin = np.split(np.abs(as_numpy(given["cos_sin_cache"])[where, None]), 2, axis=-1)
    magnitude = OPS["rotary_embedding"].magnitude
    assert magnitude is not None
    for x, size in zip((given["query"], given["key"]), as_tuple(magnitude(None, **given)), strict=True):
        heads = np.abs(as_numpy(x)).reshape(
            len(where), x.numel() // max(1, len(where) * head_size), head_size
        )
        expected = heads.copy()
        expected[..., real] = heads[..., real] * cos + heads[..., imaginary] * sin
        expected[..., imaginary] = heads[..., imaginary] * cos + heads[..., real] * sin
        np.testing.assert_allclose(size.numpy(), expected.reshape(x.shape), rtol=1e-14)


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.updates or op.of_sequences], ids=str)
def test_what_is_not_finite_in_one_sequence_reaches_no_other(op: Op):
    """Neither its results nor its state; float64 would not tell, because a reference is its own there."""
    several = ("several-sequences", "mixed", "odd-requests", "kv-cache-neox", "several-tokens")
    case = next(each for each in op.cases if each.name in several)
    spoiled, rest = case.arguments(torch.float32), case.arguments(torch.float32)
    rest = rows.take(op, rest, 1, rows.count(op, rest))
    axes, end = rows.row_arguments(op, spoiled), rows.starts(op, spoiled)[1]
    for name, axis in axes.items():
        if spoiled[name].is_floating_point():
            spoiled[name].narrow(axis, 0, end).fill_(torch.nan)
    found, expected = as_tuple(op.reference(**spoiled)), as_tuple(op.reference(**rest))
    axis = max(axes.values())
    if found:
        tokens = found[0].narrow(axis, end, found[0].shape[axis] - end)
        torch.testing.assert_close(tokens, expected[0])
    if op.of_sequences and not op.updates:  # the states are returned
        torch.testing.assert_close(found[1][1:], expected[1])
    for name in op.updates:
        of_others = op.written_rows(name, rest)
        torch.testing.assert_close(spoiled[name][of_others], rest[name][of_others])
        assert int(spoiled[name].isnan().flatten(1).any(1).sum()) == 1
