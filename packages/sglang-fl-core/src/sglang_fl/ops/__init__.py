"""The catalogue of ops: one line for each. An op that is not listed here does not exist."""

from sglang_fl.ops import rms_norm, rotary_embedding, silu_and_mul
from sglang_fl.ops.op import Bound, Case, Kernel, Op, Outputs

__all__ = ["OPS", "Bound", "Case", "Kernel", "Op", "Outputs"]

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        silu_and_mul.OP,
        rms_norm.OP,
        rotary_embedding.OP,
    )
}
