"""The launch flag of older SGLang releases that the plugin accepts on every release."""

__all__ = ["FLAG", "TODAY", "VALUE", "in_todays_words"]

#: Known to SGLang itself in ``releases.PIECEWISE_FLAG``, where it stores this very value.
FLAG = "--disable-piecewise-cuda-graph"
TODAY = "--cuda-graph-backend-prefill"
VALUE = "disabled"


def in_todays_words(arguments: str) -> str:
    """Return launch arguments as SGLang alone understands them, in each supported release."""
    return arguments.replace(FLAG, f"{TODAY} {VALUE}")
