"""``torch_npu`` for the simulated NPU: emulations under the schemas of the real one.

Written from the documentation in its wheel (``_op_plugin_docs.py``). Results are formed in float32 and
rounded once; how a chip rounds is not known. What the documentation demands is demanded here.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_fl.conformance.simulated import emulated
from sglang_fl_ascend.simulated import attention, experts

#: Defined for as long as this module is there.
LIBRARY = torch.library.Library("npu", "FRAGMENT")  # type: ignore[no-untyped-call]
SCHEMAS = {
    line.partition("(")[0]: line
    for line in (Path(__file__).parent / "schemas.txt").read_text().splitlines()
    if not line.startswith("#")
}


#: Those of ``npu_mrope``, by CANN's documentation.
SECTIONS = ((11, 11, 10), (16, 24, 24), (24, 20, 20), (8, 12, 12))
#: That of a 910B.
SOC_VERSION = 220


def npu_swiglu(x: Tensor, dim: int = -1) -> Tensor:
    """SiLU of the first half times the second."""
    gate, up = x.float().chunk(2, dim)
    return (F.silu(gate) * up).to(x.dtype)


def npu_geglu(
    x: Tensor, dim: int = -1, approximate: int = 1, activate_left: bool = False
) -> tuple[Tensor, Tensor]:
    """GELU of one half times the other, and the GELU alone."""
    left, right = x.float().chunk(2, dim)
    active, other = (left, right) if activate_left else (right, left)
    gelu = F.gelu(active, approximate="tanh" if approximate else "none")
    return (gelu * other).to(x.dtype), gelu.to(x.dtype)


def npu_gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """Exact or approximated GELU."""
    return F.gelu(x.float(), approximate=approximate).to(x.dtype)


def npu_fast_gelu(x: Tensor) -> Tensor:
    """GELU by a sigmoid."""
    return (x.float() * torch.sigmoid(1.702 * x.float())).to(x.dtype)


def _normed(total: Tensor, gamma: Tensor, epsilon: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    reciprocal = torch.rsqrt(total.square().mean(-1, keepdim=True) + epsilon)
    return (total * reciprocal * gamma).to(dtype), reciprocal


def npu_rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Norm to unit root mean square; its reciprocal too."""
    experts.demand(gamma.dtype is x.dtype, f"npu_rms_norm: x is {x.dtype}, gamma {gamma.dtype}")
    experts.demand(2 <= x.dim() <= 8, f"npu_rms_norm: {x.dim()} dimensions")
    return _normed(x.float(), gamma.float(), epsilon, x.dtype)


def npu_add_rms_norm(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """Norm the sum; the reciprocal and the sum too."""
    experts.demand(x1.shape == x2.shape, "npu_add_rms_norm: x1 and x2 have other shapes")
    experts.demand(x1.dtype is x2.dtype is gamma.dtype, "npu_add_rms_norm: several dtypes")
    total = x1.float() + x2.float()
    return *_normed(total, gamma.float(), epsilon, x1.dtype), total.to(x1.dtype)


def npu_gemma_rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Norm, and scale by one plus a weight."""
    experts.demand(gamma.dtype is x.dtype, f"npu_gemma_rms_norm: x is {x.dtype}, gamma {gamma.dtype}")
    experts.demand(x.is_contiguous() and x.numel() > 0, "npu_gemma_rms_norm: x is strided or empty")
    return _normed(x.float(), 1 + gamma.float(), epsilon, x.dtype)


def npu_layer_norm_eval(
    x: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer norm."""
    scale, shift = (None if t is None else t.float() for t in (weight, bias))
    return F.layer_norm(x.float(), normalized_shape, scale, shift, eps).to(x.dtype)


def npu_mrope(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    *,
    mrope_section: list[int] | None = None,
    rotary_mode: str | None = "half",
    cache_mode: str | None = "default",
) -> tuple[Tensor, Tensor]:
    """Rotate by one position for each token, or by three with sections."""
    experts.demand(query.dim() == key.dim() == 2, "npu_mrope: query and key must be rows")
    experts.demand(
        cos_sin_cache.dtype is query.dtype, "npu_mrope: the cache has another dtype than the query"
    )
    for width in (head_size, cos_sin_cache.shape[-1]):
        experts.demand(width * query.element_size() % 64 == 0, f"npu_mrope: a width of {width}")
    experts.demand(rotary_mode in ("half", "interleave"), f"npu_mrope: rotary_mode {rotary_mode!r}")
    experts.demand(cache_mode in ("default", "interleave"), f"npu_mrope: cache_mode {cache_mode!r}")
    picked = cos_sin_cache[positions.long()].float()
    rows = _of_sections(picked, mrope_section or [0, 0, 0], cache_mode == "interleave").unsqueeze(1)
    rotated = (_rotated(x.view(len(x), -1, head_size), rows, rotary_mode == "half") for x in (query, key))
    first, second = rotated
    return first.flatten(1), second.flatten(1)


def _of_sections(picked: Tensor, sections: list[int], is_interleaved: bool) -> Tensor:
    """Return one row of cosines and sines for each token."""
    if picked.dim() == 2:
        experts.demand(not any(sections), "npu_mrope: sections, but one position for each token")
        return picked
    experts.demand(tuple(sections) in SECTIONS, f"npu_mrope: sections {sections}")
    merged = []
    for table in picked.chunk(2, dim=-1):
        experts.demand(sum(sections) == table.shape[-1], f"npu_mrope: {sections} for {table.shape[-1]} pairs")
        if is_interleaved:
            row = table[0].clone()
            for axis in (1, 2):
                lanes = slice(axis, 3 * sections[1], 3)
                row[..., lanes] = table[axis][..., lanes]
        else:
            parts = torch.split(table, sections, dim=-1)
            row = torch.cat([part[axis] for axis, part in enumerate(parts)], dim=-1)
        merged.append(row)
    return torch.cat(merged, dim=-1)


def _rotated(heads: Tensor, rows: Tensor, is_half: bool) -> Tensor:
    width = rows.shape[-1]
    pairs = heads[..., :width].float()
    # As complex numbers: the first of each pair is the real part.
    pairs = torch.stack(pairs.chunk(2, -1), -1) if is_half else pairs.reshape(*pairs.shape[:-1], -1, 2)
    turned = torch.view_as_complex(pairs.contiguous()) * torch.complex(*rows.chunk(2, -1))
    parts = torch.view_as_real(turned)
    joined = parts.transpose(-1, -2).flatten(-2) if is_half else parts.flatten(-2)
    return torch.cat((joined.to(heads.dtype), heads[..., width:]), dim=-1)


def npu_rotary_mul(
    x: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None
) -> Tensor:
    """Rotate by cosines and sines as wide as the heads."""
    experts.demand(rotary_mode == "half" and rotate is None, "npu_rotary_mul: only halves are emulated")
    experts.demand(
        x.dim() == 4 and r1.shape[-1] == x.shape[-1], "npu_rotary_mul: four axes, tables of full width"
    )
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * r1.float() + torch.cat((-second, first), -1) * r2.float()).to(x.dtype)


def npu_format_cast(x: Tensor, acl_format: int, **dtypes: int | None) -> Tensor:
    """Return a copy: a format of the chip's memory has the same values."""
    return x.clone()


def _apply_patches(patches: object) -> None:
    """Do nothing: what the real package patches in PyTorch is its own."""


class _Options:
    """The options of a process group; nothing here reads them."""


#: Asked for by SGLang wherever there is ``torch.npu``.
_C = SimpleNamespace(_distributed_c10d=SimpleNamespace(ProcessGroupHCCL=SimpleNamespace(Options=_Options)))
npu: Any = torch.get_device_module("npu")
npu.config = SimpleNamespace()
npu.get_soc_version = lambda: SOC_VERSION
npu.set_compile_mode = lambda **options: None


EMULATIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        npu_swiglu,
        npu_geglu,
        npu_gelu,
        npu_fast_gelu,
        npu_rms_norm,
        npu_add_rms_norm,
        npu_gemma_rms_norm,
        npu_layer_norm_eval,
        npu_mrope,
        npu_rotary_mul,
        npu_format_cast,
        experts.npu_moe_gating_top_k_softmax,
        experts.npu_moe_gating_top_k,
        experts.npu_moe_init_routing_v2,
        experts.npu_grouped_matmul,
        experts.npu_moe_finalize_routing,
        attention.npu_fused_infer_attention_score,
        attention.npu_fusion_attention,
    )
}

for _name, _schema in SCHEMAS.items():
    LIBRARY.define(_schema)  # type: ignore[no-untyped-call]
    LIBRARY.impl(_name, emulated(EMULATIONS[_name]), "PrivateUse1")  # type: ignore[no-untyped-call]
    globals()[_name] = getattr(torch.ops.npu, _name)  # from here on the name is the operator

__all__ = ["_C", "_apply_patches", "npu", *SCHEMAS]
