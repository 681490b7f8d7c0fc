"""FlagGems' ATen kernels on an MLU: which of them do not run, each with its public source.

None replaces ``torch_mlu``'s by default: nobody has published a measurement that one is faster in serving. A
white list chooses among those that are not in quarantine.
"""

from sglang_fl.vendor import AtenChoice, AtenQuarantined, flag_gems_aten_kernel

__all__ = ["CHOICES", "QUARANTINE", "cumsum_is_wrong"]

QUARANTINE = (
    AtenQuarantined(
        ("cumsum",),
        "it is compiled wrongly (sglang-plugin-FL's list for Cambricon)",
        "flag-gems",
        ">=5.0.2,<6",
        "sglang_fl_mlu.aten:cumsum_is_wrong",
    ),
)

CHOICES = (
    AtenChoice(
        ("masked_scatter", "masked_scatter_", "scatter_add_"),
        False,
        "FlagGems 5.0.2 leaves it to torch_mlu itself",
    ),
    AtenChoice(
        ("allclose", "isclose", "reciprocal_", "trace"),
        False,
        "failed FlagGems' own tests on an MLU (op_black_list.yaml of 5.0.2)",
    ),
    AtenChoice(
        ("copy_",),
        False,
        "failed FlagGems' own tests on an MLU (op_black_list.yaml of 5.0.2), and spoilt the first answers "
        "with Neuware 4.4.3 (vllm-plugin-FL's list for Cambricon)",
    ),
    AtenChoice(("index",), False, "its compilation ends the server (vllm-plugin-FL's list for Cambricon)"),
)


def cumsum_is_wrong() -> None:
    """Sum up integers, which no rounding changes, over rows of several lengths.

    Raises
    ------
    AssertionError : all sums are right
    """
    import torch

    cumsum = flag_gems_aten_kernel("cumsum")
    for width in (7, 100, 4096, 100_000):
        x = torch.randint(0, 100, (3, width))
        if not torch.equal(cumsum(x.to("mlu"), 1).cpu(), x.cumsum(1)):
            return
    raise AssertionError("all sums are right")
