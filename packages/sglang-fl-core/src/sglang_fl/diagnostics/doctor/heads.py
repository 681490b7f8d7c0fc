"""tp > 1 fails at start-up: can the model's heads be spread over so many ranks?"""

from collections.abc import Iterator

from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem, unknown
from sglang_fl.diagnostics.doctor.launch import Launch
from sglang_fl.diagnostics.doctor.model import read_model
from sglang_fl.errors import SettingsError

__all__ = ["heads"]


def heads(launch: Launch) -> Iterator[Finding]:
    """Do query heads, and key and value heads, divide by the number of ranks?"""
    if launch.model is None or launch.tp < 2:
        return
    try:
        model = read_model(launch.model)
    except SettingsError as error:
        yield unknown("heads", str(error))
        return
    queries, keys = model.heads, model.kv_heads
    if queries is None or keys is None:
        yield unknown("heads", "config.json does not say how many there are")
    elif _fits(queries, keys, launch.tp):
        yield ok("heads", f"{queries} query and {keys} key-value heads over {launch.tp} ranks")
    else:
        text = f"{queries} query and {keys} key-value heads cannot be spread over {launch.tp} ranks"
        sizes = [str(tp) for tp in range(1, queries + 1) if _fits(queries, keys, tp)]
        yield problem("heads", text, f"--tp must be one of {', '.join(sizes)}")


def _fits(queries: int, keys: int, tp: int) -> bool:
    """Whether each rank gets whole heads; key-value heads may be copied where there are fewer than ranks."""
    return queries % tp == 0 and (keys % tp == 0 or tp % keys == 0)
