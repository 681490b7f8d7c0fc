"""Wrong numbers, or a request that ends the server: can the attention that runs here compute the model?"""

import json
from collections.abc import Iterator

from sglang_fl.diagnostics.doctor.child import Child, last_line, run_python
from sglang_fl.diagnostics.doctor.configured import configured
from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem, unknown
from sglang_fl.diagnostics.doctor.launch import Launch
from sglang_fl.diagnostics.doctor.model import Model, read_model
from sglang_fl.errors import SettingsError
from sglang_fl.platform import final_caps
from sglang_fl.startup import Configuration

__all__ = ["attention"]

SECONDS = 180
BACKEND = "attention backend "
CAPS_LOGITS = "the platform caps the last logits"
OURS = "sglang_fl runs here"
WRONG = "torch_native "

#: Which attention a start would take, and what it computes wrongly of a model.
_TRY = f"""
import json, sys
from sglang.srt.platforms import current_platform
from sglang.srt.plugins import load_plugins
load_plugins()
own = current_platform.is_out_of_tree()
backend = current_platform.get_default_attention_backend() if own else "SGLang's choice"
print("{BACKEND}" + backend, flush=True)
if own and getattr(current_platform, "caps_logits", False):
    print("{CAPS_LOGITS}")
if own and getattr(current_platform, "has_own_attention", False):
    print("{OURS}")
from sglang_fl.platform import wrongs_of_torch_native
for reason in wrongs_of_torch_native(json.loads(CONFIG)) if backend == "torch_native" else ():
    print("{WRONG}" + reason, flush=True)
"""

_OTHER_BACKEND = "upgrade SGLang to 0.5.22 or later, or serve the model on a device with another backend"


def attention(launch: Launch) -> Iterator[Finding]:
    """Can the attention of this platform compute the model?"""
    configuration = configured()
    if configuration is None:
        return
    model = _model(launch)
    if not _is_on_our_platform(configuration) and model is None:
        return
    config = json.dumps(dict(model.config) if model else {})
    child = run_python(f"CONFIG = {config!r}\n{_TRY}", SECONDS)
    told = [line for line in child.output.splitlines() if line.startswith(BACKEND)]
    if not told:
        reason = last_line(child.errors) if child.code is not None else f"not done after {SECONDS} s"
        yield unknown("attention", f"which backend would run cannot be asked: {reason}")
        return
    yield from _judged(told[0].removeprefix(BACKEND), child, configuration, model)


def _model(launch: Launch) -> Model | None:
    try:
        return read_model(launch.model) if launch.model is not None else None
    except SettingsError:  # told by the check of the memory
        return None


def _is_on_our_platform(configuration: Configuration) -> bool:
    vendor = configuration.registry.vendor
    return vendor.platform is not None and vendor.device_type != "cpu"


def _judged(
    backend: str, child: Child, configuration: Configuration, model: Model | None
) -> Iterator[Finding]:
    device, said = configuration.registry.vendor.device_type, child.output.splitlines()
    if backend != "torch_native":
        yield ok("attention", f"{backend} on {device}")
        return
    wrongs = [line for line in said if line.startswith(WRONG)]
    if wrongs and OURS in said:
        yield ok("attention", f"sglang_fl on {device}, because {'; '.join(wrongs)}")
        return
    for wrong in wrongs:
        yield problem("attention", f"config.json: {wrong}", _OTHER_BACKEND)
    finals = final_caps(model.config) if model and CAPS_LOGITS not in said else []
    for fault in finals:
        yield problem("attention", f"config.json: {fault}", _OTHER_BACKEND)
    if not wrongs and not finals:
        yield ok("attention", f"{backend} on {device}")
