"""Run in a process of its own with one SGLang release first on PYTHONPATH: hook it, call its layers.

Its argument is a folder for logs. Prints one JSON object. No engine, no model: the layer classes themselves,
on the CPU.
"""

import importlib
import inspect
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import exercise_shortcuts
import torch
from sglang.srt.plugins import load_plugins
from sglang.version import __version__

from sglang_fl.sglang_adapter import seams
from sglang_fl.sglang_adapter.former_flags import FLAG

TRANSLATED = (
    "sglang.srt.layers.activation:SiluAndMul",
    "sglang.srt.layers.layernorm:RMSNorm",
    "sglang.srt.layers.layernorm:GemmaRMSNorm",
    "sglang.srt.layers.rotary_embedding.base:RotaryEmbedding",
    "sglang.srt.layers.rotary_embedding.mrope:MRotaryEmbedding",
)


def main() -> None:
    load_plugins()
    version = seams.installed_version()
    seam = seams.seam_of(version)
    publish_server_args()
    layers = build_layers()
    facts = {name: exercise(layer, calls) for name, (layer, calls) in layers.items()}
    facts["version"] = __version__
    facts["seam"] = seam.target
    facts["classes"] = {path: signatures(path) for path in TRANSLATED}
    facts["flag"] = former_flag()
    facts["knows_flag"] = knows_former_flag()
    facts["honours_forced_backend"] = honours_forced_backend()
    facts["platform"] = platform()
    facts["speculates"] = speculates()
    facts["pools"] = pools()
    facts["not_cuda"] = not_cuda()
    facts["norm_before_linear"] = norm_before_linear()
    facts["shortcuts"] = exercise_shortcuts.exercise(Path(sys.argv[1]))
    facts["mlu_leaves_open"] = left_open_by_mlu()
    print("RESULT " + json.dumps(facts))


def left_open_by_mlu() -> list[str]:
    """Return what this release's platform interface leaves to a platform, and the MLU's does not answer."""
    from sglang.srt.platforms.interface import SRTPlatform

    from sglang_fl_mlu.platform import MluPlatform

    return [
        name
        for name, method in inspect.getmembers(SRTPlatform, inspect.isfunction)
        if "raise NotImplementedError" in inspect.getsource(method) and getattr(MluPlatform, name) is method
    ]


def publish_server_args() -> None:
    """Up to 0.5.18 some layers cannot be built before a configuration is published."""
    from sglang.srt import server_args

    arguments = server_args.ServerArgs(model_path="dummy", device="cpu")
    if hasattr(server_args, "set_global_server_args_for_scheduler"):
        server_args.set_global_server_args_for_scheduler(arguments)


def build_layers() -> dict[str, tuple[Any, list[tuple]]]:
    from sglang.srt.layers.activation import SiluAndMul
    from sglang.srt.layers.layernorm import GemmaRMSNorm, RMSNorm
    from sglang.srt.layers.rotary_embedding.base import LinearScalingRotaryEmbedding, RotaryEmbedding

    x, residual = torch.randn(3, 64), torch.randn(3, 64)
    rotary = (64, 64, 128, 10000, True, torch.float32)
    rope = (torch.arange(3), torch.randn(3, 128), torch.randn(3, 64))
    return {
        "SiluAndMul": (SiluAndMul(), [(x,)]),
        "RMSNorm": (RMSNorm(64), [(x,), (x.clone(), residual)]),
        "RotaryEmbedding": (RotaryEmbedding(*rotary), [rope]),
        "LinearScalingRotaryEmbedding": (
            LinearScalingRotaryEmbedding(*rotary[:-1], [1.0], torch.float32),
            [rope],
        ),
        "GemmaRMSNorm": (GemmaRMSNorm(64), [(x,)]),
    }


def exercise(layer: Any, calls: list[tuple]) -> dict[str, Any]:
    errors = []
    for arguments in calls:
        native = flat(layer.forward_native(*(a.clone() for a in arguments)))
        ours = flat(layer(*(a.clone() for a in arguments)))
        errors.append(max(float((a - b).abs().max()) for a, b in zip(ours, native, strict=True)))
    return {"runs": layer._forward_method.__module__, "largest_difference": max(errors)}


def norm_before_linear() -> str:
    """Announce the linear layer that follows, in each way that a release knows; return who ran the norm."""
    from sglang.srt.layers.layernorm import RMSNorm

    norm, linear, x = RMSNorm(64), torch.nn.Linear(64, 8), torch.randn(3, 64)
    if hasattr(norm, "fuse_input_quant"):
        norm.fuse_input_quant(linear)
    announced = "quant_linear" in inspect.signature(norm.forward_native).parameters
    norm(x, **({"quant_linear": linear} if announced else {}))
    return norm._forward_method.__module__


def flat(outputs: Any) -> tuple:
    return (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)


def signatures(path: str) -> list[str]:
    module, _, name = path.partition(":")
    cls = getattr(importlib.import_module(module), name)
    return [p for p in inspect.signature(cls.forward_native).parameters if p != "self"]


def former_flag() -> str:
    import argparse

    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    line = ["--model-path", "x", "--disable-piecewise-cuda-graph"]
    return str(parser.parse_args(line).cuda_graph_backend_prefill)


def knows_former_flag() -> bool:
    """Whether SGLang's own parser knows the flag, without what we add."""
    import argparse

    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    inspect.unwrap(ServerArgs.add_cli_args)(parser)
    return FLAG in parser._option_string_actions


def honours_forced_backend() -> bool:
    """Whether the environment can force a layer onto one backend, past what dispatch has chosen."""
    from sglang.srt.layers.activation import SiluAndMul

    bases = [cls for cls in SiluAndMul.__mro__ if cls.__name__ == "BaseFusedOp"]
    if not bases:
        return False
    fused_op = sys.modules[bases[0].__module__]
    layer, forced = SiluAndMul(), []
    layer.forward_native = forced.append
    fused_op.set_fused_op_backend(fused_op.KernelBackend.TORCH)
    layer(torch.randn(3, 8))
    fused_op.set_fused_op_backend(None)
    return bool(forced)


def platform() -> dict[str, Any]:
    from sglang.srt.platforms import current_platform

    class Arguments:
        model_path = "no model"
        mem_fraction_static = None
        attention_backend = None

    arguments = Arguments()
    current_platform.apply_server_args_defaults(arguments)
    return {
        "class": type(current_platform).__name__,
        "mem_fraction_static": arguments.mem_fraction_static,
        "attention_backend": arguments.attention_backend,
    }


def speculates() -> bool:
    from sglang.srt.platforms import current_platform

    return bool(current_platform.speculates)


def not_cuda() -> dict[str, list[str | None]]:
    """Return by platform what prepares pictures and which NCCL SGLang is to load; None: SGLang's choice."""
    from sglang.srt.platforms import current_platform
    from sglang.srt.server_args import ServerArgs

    from sglang_fl_mlu.platform import MluPlatform

    answers = {}
    for asked in (current_platform, MluPlatform()):
        arguments = SimpleNamespace(model_path="", mem_fraction_static=None, attention_backend=None)
        if hasattr(ServerArgs, "image_processor_backend"):
            arguments.image_processor_backend = "auto"
        asked.apply_server_args_defaults(arguments)
        slow = getattr(arguments, "disable_fast_image_processor", False)
        backend = getattr(arguments, "image_processor_backend", "pil" if slow else "auto")
        asked.init_backend()
        answers[asked.device_name] = [backend, os.environ.pop("SGLANG_NCCL_SO_PATH", None)]
    return answers


def pools() -> dict[str, Any] | None:
    """Return what the platforms answer where this release asks for KV pools; None where it must not."""
    from sglang.srt.platforms import current_platform

    from sglang_fl_mlu.platform import MluPlatform

    if not hasattr(current_platform, "get_mha_kv_pool_cls"):
        return None
    answers: dict[str, Any] = {}
    for asked in (current_platform, MluPlatform()):
        try:
            asked.get_paged_allocator_cls()(64, page_size=16)
        except NotImplementedError as error:
            kinds = (asked.get_mha_kv_pool_cls(), asked.get_mla_kv_pool_cls())
            answers[asked.device_name] = [*(kind.__name__ for kind in kinds), str(error)]
    return answers


if __name__ == "__main__":
    with torch.no_grad():
        main()
