"""Is an NVIDIA GPU here?"""

__all__ = ["why_unavailable"]


def why_unavailable() -> str | None:
    """Return None where PyTorch sees an NVIDIA GPU, else the reason. Cheap, and never raises."""
    try:
        import torch
    except ImportError as error:
        return f"PyTorch cannot be imported: {error}"
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA"
    # Counts through NVML where it can, so a process that forks later keeps its freedom.
    if torch.cuda.device_count() == 0:
        return "PyTorch sees no CUDA device"
    return None
