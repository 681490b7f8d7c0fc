"""The server start that doctor is asked about: the part of the launch line that its checks need."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["PORT", "Launch"]

#: Where SGLang listens unless told otherwise.
PORT = 30000


@dataclass(frozen=True)
class Launch:
    """Options of the launch line, by SGLang's names for them.

    Parameters
    ----------
    model : the folder of the model, or None
    tp : over how many devices it is spread
    nnodes : over how many machines
    mem_fraction_static : the share of the memory for weights and KV cache; None leaves it to SGLang
    dtype : ``auto``, ``bfloat16``, ...
    port : where the server listens, or None
    nccl_port : where the ranks of this machine meet, or None
    dist_init_addr : ``host:port`` at which the ranks meet, or None
    probe_seconds : how long the ranks of the probe may take, start of Python included
    """

    model: Path | None = None
    tp: int = 1
    nnodes: int = 1
    mem_fraction_static: float | None = None
    dtype: str = "auto"
    port: int | None = None
    nccl_port: int | None = None
    dist_init_addr: str | None = None
    probe_seconds: float = 60

    @property
    def local_ranks(self) -> int:
        """How many ranks run on this machine."""
        return max(1, self.tp // self.nnodes)

    @property
    def is_described(self) -> bool:
        """Whether there is a start to ask about, and not this machine alone."""
        return self.model is not None or self.tp > 1 or self.port is not None
