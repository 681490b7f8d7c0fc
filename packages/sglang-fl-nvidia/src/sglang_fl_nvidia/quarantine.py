"""FlagGems' kernels for fused ops that are known to be wrong on an NVIDIA GPU.

Each has a reproduction, which a test runs on a GPU: it returns as long as the fault is there.
"""

from sglang_fl.vendor import Quarantined, load_target

__all__ = ["QUARANTINE", "an_expert_is_chosen_twice"]

QUARANTINE = (
    Quarantined(
        "topk_softmax",
        "flagos.flag_gems",
        reason="of a row of logits with NaN it chooses an expert twice",
        library="flag-gems",
        versions=">=5.0.2,<6",
        reproduction="sglang_fl_nvidia.quarantine:an_expert_is_chosen_twice",
    ),
)


def an_expert_is_chosen_twice() -> None:
    """Route a token whose logits are not numbers.

    Raises
    ------
    AssertionError : its experts are distinct
    """
    import torch

    topk_softmax = load_target("sglang_fl.flagos.topk_softmax:topk_softmax")
    logits = torch.randn(4, 64, device="cuda")
    logits[1] = torch.nan
    _, ids = topk_softmax(logits, 8, True)
    if len(set(ids[1].tolist())) == 8:
        raise AssertionError("the experts of a row of NaN are distinct")
