"""What the SGLang platform of a vendor package may take from core.

SGLang imports platforms while ``sglang`` itself is half imported: nothing here imports any of SGLang before a
method is called.
"""

import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "LoadsPlugins",
    "NoTriton",
    "NotCuda",
    "PlainSpeculation",
    "SGLangPools",
    "TorchNative",
    "final_caps",
    "soft_caps",
    "wrongs_of_torch_native",
]

logger = logging.getLogger(__name__)

#: The algorithms whose kernels the plugin replaces by plain PyTorch, as ``--speculative-algorithm`` has them.
SPECULATION = ("EAGLE", "NEXTN", "NGRAM", "STANDALONE")
#: Arguments that ask for what was not replaced, and a value with which they do not.
SPECULATION_OPTIONS = {
    "enable_multi_layer_eagle": False,
    "speculative_adaptive": False,
    "speculative_draft_attention_backend": "sglang_fl",
    "speculative_draft_window_size": None,
    "speculative_use_rejection_sampling": False,
}


class SGLangPools:
    """Lets a platform keep SGLang's own KV pools and its allocator for pages of one token.

    Up to 0.5.21 SGLang asks a platform for them. Later it takes these itself, and warns of a platform that
    still answers, so that there this class adds nothing. A platform names it before its SGLang base class::

        class MyPlatform(SGLangPools, SRTPlatform): ...
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Give the answers to a platform whose SGLang asks; those that it defines itself stay."""
        super().__init_subclass__(**options)
        if hasattr(cls, "get_kv_pool_cls"):
            return
        for answer in (get_mha_kv_pool_cls, get_mla_kv_pool_cls, get_paged_allocator_cls):
            if answer.__name__ not in vars(cls):
                setattr(cls, answer.__name__, answer)


class NotCuda:
    """Keeps SGLang from taking a platform for CUDA where it does not ask.

    Up to 0.5.20 SGLang prepares pictures on ``cuda:0`` for all platforms but a few of its own, and up to
    0.5.22 it takes NCCL for their ranks wherever the library can be loaded, which a torch for CUDA brings
    along. Some models of all releases ask ``torch.get_device_module()`` for the current device, which is
    ``torch.cuda`` in a torch for CUDA without a GPU; on a platform of a CPU it is ``torch.cpu``. A platform
    names it before its SGLang base class::

        class MyPlatform(SGLangPools, NotCuda, SRTPlatform): ...
    """

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Have pictures prepared on the host by Pillow, unless the user chose what prepares them."""
        super().apply_server_args_defaults(server_args)  # type: ignore[misc]
        if hasattr(self, "capabilities"):
            return
        if not hasattr(server_args, "image_processor_backend"):
            server_args.disable_fast_image_processor = True
        elif server_args.image_processor_backend == "auto":
            server_args.image_processor_backend = "pil"

    def init_backend(self) -> None:
        """Have no NCCL found, unless the user named one; and have a CPU's module taken for it."""
        super().init_backend()  # type: ignore[misc]
        if not hasattr(getattr(self, "capabilities", None), "supports_pynccl"):
            os.environ.setdefault("SGLANG_NCCL_SO_PATH", f"no-nccl-on-{self.device_name}")  # type: ignore[attr-defined]
        if self.device_type == "cpu":  # type: ignore[attr-defined]
            import torch

            named = cpu_where_none_is_named(torch.get_device_module)
            torch.get_device_module = named  # type: ignore[assignment]


def cpu_where_none_is_named(own: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return ``torch.get_device_module`` with ``torch.cpu`` for the module of no device in particular."""

    @functools.wraps(own)
    def get_device_module(device: Any = None) -> Any:
        return own("cpu" if device is None else device)

    return get_device_module


class NoTriton:
    """Has SGLang compute in plain PyTorch what it would launch a Triton kernel for, where none can run.

    That is the soft cap of the last logits, and the experts of GPT-OSS, from 0.5.22 on: earlier SGLang does
    not tell a platform of a loaded model. From 0.5.23 on the plugin does the same for linear attention and
    gates, on the platforms that have this class. A platform names it before its SGLang base class::

        class MyPlatform(NoTriton, TorchNative, SGLangPools, NotCuda, SRTPlatform): ...
    """

    @property
    def caps_logits(self) -> bool:
        """Whether the last logits are capped here."""
        return hasattr(super(), "post_load_model")

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Keep SGLang from laying out the experts of GPT-OSS for a package of Triton kernels.

        It does so wherever the package can be found, and ``pip install sglang`` installs it.
        """
        super().apply_server_args_defaults(server_args)  # type: ignore[misc]
        if self.caps_logits:
            from sglang.srt.arg_groups.model_overrides import gpt_oss

            gpt_oss.is_triton_kernels_available = lambda: False

    def post_load_model(self, model: Any) -> None:
        """Put the cap in plain PyTorch in the place of SGLang's kernel, in a process that runs a model."""
        super().post_load_model(model)  # type: ignore[misc]
        from sglang.srt.layers import logits_processor

        logits_processor.fused_softcap = soft_cap_


def soft_cap_(logits: Any, cap: float) -> Any:
    """Set logits to ``cap tanh(logits / cap)``, as SGLang's ``softcap_inplace_logits`` does."""
    return logits.div_(cap).tanh_().mul_(cap)


class PlainSpeculation:
    """Lets SGLang speculate in plain PyTorch on the attention backend ``sglang_fl``, from 0.5.23 on.

    On a platform with this class the plugin replaces the functions of SGLang that launch kernels for it. What
    cannot run is refused before a model is loaded. A platform names it before its SGLang base class, or
    ``TorchNative``, which is one.
    """

    @property
    def speculates(self) -> bool:
        """Whether drafted tokens can be checked here: where SGLang asks a platform which worker does it."""
        return hasattr(super(), "get_speculative_worker_cls")

    def supports_speculative_algorithm(self, algorithm: str) -> bool:
        """Whether SGLang has an algorithm on this device, and the plugin replaces its kernels."""
        is_on_device = algorithm != "NGRAM" or self.device_type == "cpu"  # type: ignore[attr-defined]
        return self.speculates and algorithm in SPECULATION and is_on_device

    def get_default_speculative_draft_attention_backend(self, algorithm: str) -> str:
        """Return ``sglang_fl``, whatever the algorithm."""
        return "sglang_fl"

    def supports_speculative_draft_attention_backend(self, algorithm: str, backend: str) -> bool:
        """Whether a draft model attends by ``sglang_fl``."""
        return self.supports_speculative_algorithm(algorithm) and backend == "sglang_fl"

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Refuse speculation that cannot run; choose what it runs on."""
        super().apply_server_args_defaults(server_args)  # type: ignore[misc]
        algorithm = getattr(server_args, "speculative_algorithm", None)
        if not algorithm:
            return
        reason = self._why_no_speculation(algorithm.upper(), server_args)
        if reason is not None:
            # SGLang itself does not ask the platform about every algorithm, and dies in the scheduler.
            print(  # noqa: T201 - no log is configured yet
                f"sglang-fl: --speculative-algorithm {algorithm}: {reason}", file=sys.stderr
            )
            raise SystemExit(2)
        server_args.attention_backend = "sglang_fl"
        # Batches that overlap hand drafts on by a Triton kernel; SGLang leaves them off on a CPU itself.
        server_args.disable_overlap_schedule = True

    def _why_no_speculation(self, algorithm: str, server_args: Any) -> str | None:
        device: str = self.device_type  # type: ignore[attr-defined]
        if not self.speculates:
            return (
                f"its kernels do not run on {device}, and SGLang 0.5.23 is the first whose can be replaced."
            )
        if not self.supports_speculative_algorithm(algorithm):
            valid = ", ".join(filter(self.supports_speculative_algorithm, SPECULATION))
            known = (
                "SGLang has it on other devices alone"
                if algorithm in SPECULATION
                else "nothing replaces them"
            )
            return f"its kernels do not run on {device}, and {known}. Valid: {valid}."
        others = sorted(_attention_named(server_args) - {"sglang_fl"})
        if others:
            return f"drafted tokens are checked by the attention backend sglang_fl. Leave {others[0]} out."
        for name, harmless in SPECULATION_OPTIONS.items():
            value = getattr(server_args, name, None)
            if value not in (None, False, harmless):
                flag = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
                return f"{flag} is no part of what runs on {device}. Leave that out."
        if _keeps_states(server_args):
            return (
                f"this model keeps a state for each request (linear attention, Mamba), and on {device} "
                f"nothing takes the place of the kernels that check drafts with it. Leave it out."
            )
        return None


def _attention_named(server_args: Any) -> set[str]:
    """Return the attention backends that the user has named."""
    parts = ("attention_backend", "prefill_attention_backend", "decode_attention_backend")
    named = (getattr(server_args, part, None) for part in parts)
    return {str(name) for name in named if name not in (None, "intel_amx")}


def _keeps_states(server_args: Any) -> bool:
    """Whether a model has layers with a state for each request, by SGLang's own list of such models."""
    from sglang.srt.arg_groups.overrides import model_config_of
    from sglang.srt.configs.hybrid_arch import mambaish_config

    return mambaish_config(model_config_of(server_args)) is not None


class TorchNative(PlainSpeculation):
    """Chooses ``sglang_fl`` for models for which SGLang's ``torch_native`` attention computes something else.

    For a platform whose default attention backend ``torch_native`` is. ``sglang_fl`` is there from SGLang
    0.5.22 on; before, and where the user chose ``torch_native``, the start warns. A platform names this class
    before its SGLang base class::

        class MyPlatform(TorchNative, SGLangPools, NotCuda, SRTPlatform): ...
    """

    @property
    def has_own_attention(self) -> bool:
        """Whether the attention backend ``sglang_fl`` runs here."""
        return hasattr(super(), "post_load_model")

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Choose the attention backend that the model needs, or warn."""
        super().apply_server_args_defaults(server_args)
        named = _attention_named(server_args)
        config = _config(str(server_args.model_path))
        reasons = wrongs_of_torch_native(config)
        if reasons and not named and self.has_own_attention:
            logger.info("attention runs on sglang_fl: torch_native %s", "; it ".join(reasons))
            server_args.attention_backend = "sglang_fl"
            reasons = []
        if named <= {"torch_native"}:
            for reason in reasons:
                logger.warning("config.json: the attention backend torch_native %s", reason)
            if not getattr(self, "caps_logits", False):
                for fault in final_caps(config):
                    logger.warning("config.json: %s", fault)


def final_caps(config: Mapping[str, Any]) -> list[str]:
    """Return what becomes of soft caps of the last logits where no Triton kernel can run; mostly nothing."""
    fate = "SGLang applies it with a Triton kernel: where none can run, the first request ends the server"
    return [f"{key}={value:g}: {fate}" for key, value in soft_caps(config, "final").items()]


def wrongs_of_torch_native(config: Mapping[str, Any]) -> list[str]:
    """Return what SGLang's ``torch_native`` attention computes wrongly of a model; empty where it is right.

    Each is the rest of a sentence that begins with the backend's name.

    Parameters
    ----------
    config : the model's ``config.json``
    """
    caps = soft_caps(config, "attn").items()
    found = [f"does not apply {key}={value:g}, so that the answers are wrong" for key, value in caps]
    if any(part.get("kv_lora_rank") for part in _parts(config)):
        found.append("reads the pool of latent attention (kv_lora_rank) as if it held keys of each head")
    chunks = {part.get("attention_chunk_size") for part in _parts(config)} - {None}
    found += [
        f"lets tokens see more than their own chunk of {chunk} (attention_chunk_size)" for chunk in chunks
    ]
    if _has_pool_for_windows(config):
        found.append(
            "reads keys of layers with a window from the wrong slots, because SGLang keeps them in a pool of "
            "their own"
        )
    return found


def _has_pool_for_windows(config: Mapping[str, Any]) -> bool:
    """Whether SGLang keeps the keys of a model's layers with a window in a pool of their own."""
    from sglang.srt.configs import model_config

    return bool(model_config.is_hybrid_swa_model(list(config.get("architectures") or ())))


def _config(model: str) -> Mapping[str, Any]:
    """Return a model's ``config.json``; empty where it is not on this machine, or cannot be read."""
    file = Path(model) / "config.json"
    if not file.is_file():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            file = Path(str(try_to_load_from_cache(model, "config.json")))
        except HFValidationError:  # the name of no repository; SGLang says so
            return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a configuration, and those within it of what reads and writes text."""
    parts = [config, *(config.get(key) for key in ("text_config", "llm_config"))]
    return [part for part in parts if isinstance(part, Mapping)]


def soft_caps(config: Mapping[str, Any], of: str = "") -> dict[str, float]:
    """Return the soft caps that a model's ``config.json`` asks for, by key.

    Parameters
    ----------
    config : the file's content
    of : ``attn``: of attention alone; ``final``: of the last logits; both otherwise
    """
    return {
        key: value
        for part in _parts(config)
        for key, value in part.items()
        if "softcap" in key
        and key.startswith(of or ("attn", "final"))
        and isinstance(value, int | float)
        and value
    }


class LoadsPlugins:
    """Has SGLang load its plugins in processes that run a model and in which it forgets to.

    In SGLang 0.5.23 these are ``sglang.benchmark.one_batch``, Ray's scheduler actors and encoder-only
    workers. Before such a process builds the model it asks the platform for the backend of
    ``torch.distributed``. A platform names this class before its SGLang base class::

        class MyPlatform(LoadsPlugins, SGLangPools, NotCuda, SRTPlatform): ...
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Load plugins before the platform's own answer, which may stand in the subclass itself."""
        super().__init_subclass__(**options)
        answer = cls.get_torch_distributed_backend_str  # type: ignore[attr-defined]

        def load_and_answer(self: Any) -> str:
            load_plugins()
            return str(answer(self))

        load_and_answer.__doc__ = answer.__doc__
        cls.get_torch_distributed_backend_str = load_and_answer  # type: ignore[attr-defined]


def load_plugins() -> None:
    """Load SGLang's plugins unless it has done so in this process; say what comes too late here."""
    from sglang.srt import plugins

    if not getattr(plugins, "_plugins_loaded", True):
        logger.warning(
            "SGLang loads no plugins in this process (%s), so that sglang-fl has loaded them: fused ops "
            "(layer 2) are dispatched; ATen ops (layer 1) are replaced only where a scheduler runs",
            Path(sys.argv[0]).name,
        )
        plugins.load_plugins()


def get_mha_kv_pool_cls(platform: Any) -> type:
    """Return SGLang's own KV pool."""
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    return MHATokenToKVPool  # type: ignore[no-any-return]


def get_mla_kv_pool_cls(platform: Any) -> type:
    """Return SGLang's own KV pool of latent attention."""
    from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool

    return MLATokenToKVPool  # type: ignore[no-any-return]


def get_paged_allocator_cls(platform: Any) -> Callable[..., Any]:
    """Return a maker of SGLang's allocator.

    It raises ``NotImplementedError`` for larger pages than one token.
    """

    def token_allocator(size: int, *, page_size: int, **options: Any) -> Any:
        from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator

        if page_size != 1:
            raise NotImplementedError(
                f"--page-size {page_size}: this SGLang allocates larger pages with Triton kernels only; "
                f"use --page-size 1 on {platform.device_name}"
            )
        return TokenToKVPoolAllocator(size, **options)

    return token_allocator
