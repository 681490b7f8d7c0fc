"""Which operators a chip of the family lacks, as far as that is documented.

A kernel that calls one of them says so when it is loaded, and the next candidate runs; what is not documented
comes out in the first call, as an error of the operator.
"""

import torch_npu

from sglang_fl.errors import UnsupportedError

__all__ = ["ABSENT_ON_310P", "require"]

#: Each with the page that names the products it is for, and not the Atlas inference products (310P).
ABSENT_ON_310P = {
    "npu_fused_infer_attention_score": "torch_npu 2.14.0, npu_fused_infer_attention_score",
    "npu_fusion_attention": "torch_npu 2.14.0, npu_fusion_attention",
    "npu_gemma_rms_norm": "torch_npu 2.14.0, npu_gemma_rms_norm",
    "npu_moe_init_routing_v2": "torch_npu 2.14.0, npu_moe_init_routing_v2",
    "npu_mrope": "CANN, aclnnRopeWithSinCosCacheV2",
}
#: What torch_npu calls those chips; vllm-ascend tells them apart by the same numbers.
SOC_VERSIONS_OF_310P = range(200, 206)


def require(operator: str) -> None:
    """Refuse to go on where this chip is known to lack an operator.

    Raises
    ------
    UnsupportedError : it is a 310P, and the operator is documented for other products alone
    """
    page = ABSENT_ON_310P.get(operator)
    if page and torch_npu.npu.get_soc_version() in SOC_VERSIONS_OF_310P:
        raise UnsupportedError(f"a 310P has no {operator} ({page})")
