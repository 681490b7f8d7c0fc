"""SGLang's own variables, as far as they decide whether it asks us, and as what."""

import os
from dataclasses import dataclass

__all__ = ["SglangSettings"]


@dataclass(frozen=True)
class SglangSettings:
    """What SGLang will read; an empty variable counts as unset.

    Parameters
    ----------
    platform : the platform plugin that is to be used
    use_cpu_engine : ``1`` for SGLang's own CPU platform
    force_fused_op_backend : the method that every fused layer is to run
    plugins : the plugins that are to be loaded
    has_metrics : whether SGLang counts; it tells its processes where by a variable of ``prometheus_client``
    """

    platform: str | None = None
    use_cpu_engine: str = "0"
    force_fused_op_backend: str | None = None
    plugins: str | None = None
    has_metrics: bool = False

    @classmethod
    def read(cls) -> "SglangSettings":
        """Read the environment."""
        return cls(
            platform=os.environ.get("SGLANG_PLATFORM") or None,
            use_cpu_engine=os.environ.get("SGLANG_USE_CPU_ENGINE") or "0",
            force_fused_op_backend=os.environ.get("SGLANG_FORCE_FUSED_OP_BACKEND") or None,
            plugins=os.environ.get("SGLANG_PLUGINS") or None,
            has_metrics=bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR")),
        )
