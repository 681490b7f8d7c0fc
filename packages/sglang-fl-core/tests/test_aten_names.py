"""Which ATen ops a name means."""

import pytest

from sglang_fl.aten.names import find, find_all
from sglang_fl.errors import SettingsError
from sglang_fl.vendor import AtenOp

OPS = (
    AtenOp("mul.Tensor", "mul"),
    AtenOp("mul_.Tensor", "mul_"),
    AtenOp("sum", "sum"),
    AtenOp("sum.dim_IntList", "sum_dim"),
    AtenOp("_softmax", "softmax"),
    AtenOp("div.Tensor", "true_divide"),
    AtenOp("div.Scalar", "true_divide"),
    AtenOp("div.Tensor_mode", "div_mode"),
)

MEANT = {
    "mul": ["mul.Tensor"],
    "mul.Tensor": ["mul.Tensor"],
    "aten::mul.Tensor": ["mul.Tensor"],
    "aten::mul": ["mul.Tensor"],
    "mul_": ["mul_.Tensor"],
    "sum": ["sum"],
    "aten::sum": ["sum", "sum.dim_IntList"],
    "sum.default": ["sum"],
    "aten::sum.default": ["sum"],
    "mul.default": [],
    "sum_dim": ["sum.dim_IntList"],
    "softmax": ["_softmax"],
    "_softmax": ["_softmax"],
    "aten::_softmax": ["_softmax"],
    "true_divide": ["div.Tensor", "div.Scalar"],
    "div": ["div.Tensor", "div.Scalar", "div.Tensor_mode"],
    "aten::div": ["div.Tensor", "div.Scalar", "div.Tensor_mode"],
    "aten::softmax": [],
    "mul.Scalar": [],
    "mull": [],
}


@pytest.mark.parametrize(("name", "overloads"), MEANT.items(), ids=MEANT)
def test_name_means_one_overload_or_all_of_a_function_or_all_of_an_op(name: str, overloads: list[str]):
    assert [op.overload for op in find(name, OPS)] == overloads


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("mull", " Nearest: mul."),
        ("aten::mull", " Nearest: aten::mul."),
        ("mul.Tensr", " Nearest: mul.Tensor."),
        ("aten::sofmax", " Nearest: aten::_softmax."),
        ("convolution", ""),
    ],
)
def test_unknown_name_is_refused_with_the_nearest(name: str, nearest: str):
    with pytest.raises(SettingsError) as error:
        find_all(["mul", name], OPS, "SGLANG_FL_FLAGOS_WHITELIST='...'")
    assert str(error.value) == (
        f"SGLANG_FL_FLAGOS_WHITELIST='...': the vendor's kernels replace no ATen op '{name}'.{nearest} "
        "`sglang-fl ops --aten` lists them."
    )
