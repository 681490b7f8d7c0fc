"""Attention of a draft model: several steps ahead, and over what the target model has accepted."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from sglang.srt import platforms
from sglang.srt.speculative import spec_utils
from sglang.srt.speculative.draft_utils import DraftBackendFactory
from sglang.srt.speculative.eagle_worker_v2 import EagleDraftWorker

from sglang_fl.sglang_adapter.attention.backend import PagedAttention
from sglang_fl.sglang_adapter.attention.offer import NAME

__all__ = ["DraftSteps", "attend_by_ours", "choose_uncompiled", "share_without_cuda"]


class DraftSteps:
    """The attention backends of the steps in which a draft model runs, one for each.

    All of them compute by the kernels of the draft model's own backend, which layer 2 has chosen.

    Parameters
    ----------
    runner : SGLang's ``ModelRunner`` of the draft model, with an attention backend of ours
    branches : how many tokens each step makes for each request
    steps : how many tokens stand behind each other; the last one needs no attention
    """

    needs_cpu_seq_lens = False

    def __init__(self, runner: Any, branches: int, steps: int) -> None:
        self._branches = branches
        self._steps = steps
        self.attn_backends = [PagedAttention(runner, runner.attn_backend.kernels) for _ in range(steps - 1)]

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Take down for each step where the tokens of a batch lie."""
        for step, backend in enumerate(self.attn_backends):
            backend.init_draft_step(forward_batch, step, self._branches, self._steps)


def attend_by_ours() -> None:
    """Let SGLang's factory of backends for draft models make ours, where it is the one that is asked for."""
    own = DraftBackendFactory._create_backend

    def _create_backend(
        factory: Any,
        backend_name: str,
        backend_map: Mapping[str, Callable[[], Any]],
        *given: Any,
        **named: Any,
    ) -> Any:
        runner = factory.draft_model_runner
        if named.get("stamps_children"):  # it is for steps ahead

            def ours() -> tuple[str, Any]:
                return NAME, DraftSteps(runner, factory.topk, factory.speculative_num_steps)
        else:

            def ours() -> tuple[str, Any]:
                return NAME, runner.attn_backend

        return own(factory, backend_name, {**backend_map, NAME: ours}, *given, **named)

    DraftBackendFactory._create_backend = _create_backend


def choose_uncompiled() -> None:
    """Leave the choice of drafts to PyTorch: SGLang compiles it, for which a host may have no compiler."""
    compiled = spec_utils._select_top_k_tokens_later
    spec_utils._select_top_k_tokens_later = getattr(compiled, "_torchdynamo_orig_callable", compiled)


def share_without_cuda() -> None:
    """Let draft models take their embeddings from the target model, and the platform wait for that.

    Most of SGLang's models wait for a CUDA device there, whatever they run on.
    """
    own = EagleDraftWorker.init_lm_head

    @functools.wraps(own)
    def init_lm_head(worker: Any) -> None:
        of_cuda = torch.cuda.synchronize
        torch.cuda.synchronize = platforms.current_platform.synchronize
        try:
            own(worker)
        finally:
            torch.cuda.synchronize = of_cuda

    EagleDraftWorker.init_lm_head = init_lm_head
