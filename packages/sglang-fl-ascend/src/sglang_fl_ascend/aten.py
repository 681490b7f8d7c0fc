"""FlagGems' ATen kernels on an NPU: which of them do not run, each with its public source.

None replaces ``torch_npu``'s by default: nobody has published a measurement that one is faster in serving,
and there is one by which all together are slower (flagos-ai/FlagGems#6286: less than half of the tokens on a
910C). A white list chooses among those that are not in quarantine.
"""

from sglang_fl.vendor import AtenChoice, AtenQuarantined, flag_gems_aten_kernel

__all__ = ["CHOICES", "QUARANTINE", "index_gathers_wrong_elements", "ones_of_nothing_fail"]

_LIBRARY = "flag-gems"

QUARANTINE = (
    AtenQuarantined(
        ("ones", "ones_like"),
        "an empty tensor makes a block of no elements, which does not compile (flagos-ai/FlagGems#6278)",
        _LIBRARY,
        ">=5.0.2,<6",
        "sglang_fl_ascend.aten:ones_of_nothing_fail",
    ),
    AtenQuarantined(
        ("index",),
        "it gathers wrong elements (flagos-ai/FlagGems#5594; vllm-plugin-FL's list for Ascend)",
        _LIBRARY,
        ">=5.3.0rc1,<6",
        "sglang_fl_ascend.aten:index_gathers_wrong_elements",
    ),
)

CHOICES = (
    AtenChoice(("copy_", "sort", "sort_stable"), False, "FlagGems 5.0.2 leaves it to torch_npu itself"),
    AtenChoice(
        (
            "gather",
            "count_nonzero",
            "index_put_",
            "_index_put_impl_",
            "cumsum",
            "fill_scalar_",
            "argmax",
            "add_",
            "conv1d",
            "floor_divide",
            "true_divide_",
        ),
        False,
        "left out to serve on 910B and 910C, FlagGems 5.3.0 (flagos-ai/sglang-plugin-FL#55)",
    ),
    AtenChoice(
        ("full_like",), False, "does not compile in FlagGems 5.3.0rc2 (flagos-ai/FlagGems#5594), 5.0.2 may"
    ),
    AtenChoice(
        ("cos", "sin", "rsqrt", "silu"),
        False,
        "without the four, and log_, GPQA-Diamond rose from 37 to 57 % on a 910C (flagos-ai/FlagGems#6277)",
    ),
    AtenChoice(("exp", "log"), False, "imprecise and slow on an NPU (vllm-plugin-FL's list for Ascend)"),
    AtenChoice(("softmax",), False, "with linear it garbled answers on a 910C (flagos-ai/FlagGems#6109)"),
)


def ones_of_nothing_fail() -> None:
    """Make ones of no elements.

    Raises
    ------
    AssertionError : they can be made
    """
    import torch

    ones_like = flag_gems_aten_kernel("ones_like")
    try:
        ones_like(torch.empty(0, device="npu"))
    except Exception:  # noqa: BLE001 - Triton's errors have no common class
        return
    raise AssertionError("ones of no elements can be made")


def index_gathers_wrong_elements() -> None:
    """Gather rows of a table as a vision model does.

    Raises
    ------
    AssertionError : they are the right ones
    """
    import torch

    index = flag_gems_aten_kernel("index")
    table, rows = torch.randn(64, 40), torch.randint(0, 64, (1024, 2))
    found = index(table.to("npu"), [rows.to("npu")])
    if torch.equal(found.cpu(), table[rows]):
        raise AssertionError("all rows are right")
