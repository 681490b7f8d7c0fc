"""A profile: what was asked for, of what, and what each phase spends its time on."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sglang_fl.profiling.shares import Candidate, Phase, left

__all__ = ["Profile", "Request"]


@dataclass(frozen=True)
class Request:
    """What the engine is asked for.

    Parameters
    ----------
    batch : requests at a time
    prefill : tokens of each prompt
    decode : decode steps
    """

    batch: int
    prefill: int
    decode: int


@dataclass(frozen=True)
class Profile:
    """What was measured.

    Parameters
    ----------
    model : as the user has written it
    arguments : of SGLang's launch line, beside the model
    request : what the engine was asked for
    software : the version of each package
    device : its name
    device_type : PyTorch's string
    ranks : processes that ran the model
    is_device : whether times are a device's; else they are of ops on the CPU
    phases : decode first
    outside_us : microseconds of a device's work that was launched in no step, of all ranks
    our_ops : the op of ours for a layer class of SGLang
    """

    model: str
    arguments: tuple[str, ...]
    request: Request
    software: Mapping[str, str]
    device: str
    device_type: str
    ranks: int
    is_device: bool
    phases: tuple[Phase, ...]
    outside_us: float = 0.0
    our_ops: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_blind(self) -> bool:
        """Whether there is a device that the profiler of this PyTorch does not see."""
        return self.device_type != "cpu" and not self.is_device

    def left(self, phase: Phase) -> list[Candidate]:
        """Return what runs on no kernel of ours in a phase, the largest first."""
        return left(phase, self.our_ops)
