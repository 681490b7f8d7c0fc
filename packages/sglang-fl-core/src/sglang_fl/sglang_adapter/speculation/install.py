"""Puts plain PyTorch in the place of SGLang's kernels for speculation, on platforms of ours.

SGLang asks a platform whether it speculates and by which worker, and not about the kernels of that worker.
Its modules look them up by name in each call, so the names are given other functions before a worker is made.
"""

import importlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

from packaging.version import Version

from sglang_fl.platform import PlainSpeculation
from sglang_fl.sglang_adapter.attention.offer import NAME
from sglang_fl.sglang_adapter.releases import SPECULATION
from sglang_fl.sglang_adapter.replaced import Functions, give_all
from sglang_fl.sglang_adapter.speculation import sampling, slots, trees

__all__ = ["install", "replace", "standing_in"]

#: Where SGLang chooses the worker of a server that speculates; the pools are made later.
TARGET = "sglang.srt.speculative.spec_info.SpeculativeAlgorithm.create_worker"

#: The functions that take the place of those of the same name in a module of SGLang.
_OF_ALL: Functions = {
    "sglang.kernels.ops.speculative.cache_locs": (slots.assign_extend_cache_locs_func,),
    "sglang.srt.mem_cache.allocation": (slots.assign_req_to_token_pool_func, slots.get_last_loc),
    "sglang.srt.speculative.eagle_utils": (
        sampling.top_k_renorm_prob,
        sampling.top_p_renorm_prob,
        sampling.tree_speculative_sampling_target_only,
        trees.build_tree_kernel_efficient_func,
        trees.verify_tree_greedy_func,
    ),
    "sglang.srt.speculative.spec_utils": (
        slots.fill_accept_out_cache_loc_func,
        slots.fill_front_out_cache_loc_func,
    ),
}
#: For a draft model, beside those.
_OF_DRAFT_MODELS: Functions = {
    "sglang.srt.speculative.eagle_worker_common": (
        slots.assign_draft_cache_locs_contiguous_func,
        slots.fill_bonus_tokens_func,
    ),
}


def install(version: Version, guard: Callable[[], AbstractContextManager[None]]) -> None:
    """Have the names replaced where SGLang is about to make a worker for speculation.

    Parameters
    ----------
    version : of SGLang; one on which our platforms do not speculate is left alone
    guard : is entered where they are replaced, in a process that runs a model
    """
    from sglang.srt import platforms

    if version not in SPECULATION or not isinstance(platforms.current_platform, PlainSpeculation):
        return
    from sglang.srt.arg_groups.choices import add_draft_attention_backend_choices
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    def about_to_create(algorithm: Any, *given: Any) -> None:
        with guard():
            replace(algorithm)

    add_draft_attention_backend_choices([NAME])
    HookRegistry.register(TARGET, about_to_create, HookType.BEFORE)


def replace(algorithm: Any) -> None:
    """Replace the names that an algorithm needs.

    Parameters
    ----------
    algorithm : SGLang's ``SpeculativeAlgorithm``
    """
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    MHATokenToKVPool._init_kv_copy_and_warmup = move_by_indices
    give_all(_OF_ALL)
    if algorithm.is_ngram():
        with standing_in("sgl_kernel.speculative", trees.reconstruct_indices_from_tree_mask):
            importlib.import_module("sglang.srt.speculative.ngram_worker")
    else:
        from sglang_fl.sglang_adapter.speculation import drafting

        give_all(_OF_DRAFT_MODELS)
        drafting.attend_by_ours()
        drafting.choose_uncompiled()
        drafting.share_without_cuda()


def move_by_indices(pool: Any) -> None:
    """Have a pool move keys and values by indices, where it would prepare a kernel for that."""
    pool._kv_copy_config = None
    pool.use_native_move_kv_cache = True


@contextmanager
def standing_in(name: str, *functions: Callable[..., Any]) -> Any:
    """Let a module with these functions stand in for one that cannot be imported here."""
    module = ModuleType(name)
    vars(module).update({function.__name__: function for function in functions})
    own = sys.modules.get(name)
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]
        if own is not None:
            sys.modules[name] = own
