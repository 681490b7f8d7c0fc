"""Faulty vendor packages, really installed: core and the others go on, with one message for each."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sglang_fl.conformance import check_declared
from sglang_fl.dispatch.life import Choice, FirstCall
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.ops import OPS
from sglang_fl.registry import InstalledVendor, installed_vendors, isolation
from sglang_fl.registry.cpu import CPU
from sglang_fl.startup import Configuration, configure
from sglang_fl.vendor import Vendor, load_target

Install = Callable[..., str]
RMS = OPS["rms_norm"]

HEAD = """
from sglang_fl.registry.cpu import CPU
from sglang_fl.ops import OPS
from sglang_fl.vendor import BackendKind, OpImpl, Vendor

def why_unavailable():
    return None

def listed(*impls):
    return Vendor("bad", "cpu", 1, __name__ + ":why_unavailable", impls=impls)

def impl(id="flagos", kind=BackendKind.FLAGOS):
    return OpImpl("rms_norm", kind, id, "somewhere:rms_norm")

CHIP = listed(impl())
"""

#: What the package does, and what the one message says of it.
FAULTS = {
    "import-a-missing-library": ("import no_such_library", "No module named 'no_such_library'"),
    "exit-on-import": ("raise SystemExit(3)", "SystemExit: 3"),
    "register-an-op-twice": ("CHIP = listed(impl(), impl())", "rms_norm has two implementations 'flagos'"),
    "claim-an-id-of-another": (
        "CHIP = listed(impl('vendor.nvidia', BackendKind.VENDOR))",
        "rms_norm claims the id 'vendor.nvidia'; native kernels of this vendor are 'vendor.bad'",
    ),
    "raise-in-the-probe": (
        "def why_unavailable():\n    raise RuntimeError('driver too old')",
        "RuntimeError: driver too old",
    ),
    "exit-in-the-probe": ("def why_unavailable():\n    raise SystemExit(3)", "SystemExit: 3"),
    "hang-in-the-probe": (
        "import time\ndef why_unavailable():\n    time.sleep(60)",
        "did not return within 0.5 s",
    ),
    "add-an-op": ("OPS['mine'] = OPS['rms_norm']", "does not support item assignment"),
    "change-an-op": ("OPS['rms_norm'].bound = None", "FrozenInstanceError"),
    "change-another-vendor": ("CPU.environment['GEMS_VENDOR'] = 'bad'", "does not support item assignment"),
}


@pytest.fixture(autouse=True)
def short_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(isolation, "PROBE_SECONDS", 0.5)


def start(caplog: pytest.LogCaptureFixture) -> tuple[Configuration, list[str]]:
    """Configure this process; return the warnings too."""
    with caplog.at_level(logging.WARNING, "sglang_fl"):
        configuration = configure()
    return configuration, [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(("source", "fault"), FAULTS.values(), ids=FAULTS)
def test_faulty_package_is_one_message_and_the_others_go_on(
    install: Install, install_vendor: Install, caplog, source: str, fault: str
):
    before = {op.name: vars(op).copy() for op in OPS.values()}, vars(CPU).copy()
    install("bad", f"{HEAD}\n{source}\n")
    install_vendor("good", impls='OpImpl("rms_norm", VENDOR, "vendor.good", "no_such:rms_norm"),')
    configuration, warnings = start(caplog)
    (message,) = warnings
    assert message.startswith("vendor bad (sglang-fl-bad 0.0.1) is left out: ")
    assert fault in message
    assert configuration.registry.vendor.name == "good"
    ids = [impl.id for impl in configuration.registry.implementations(RMS)]
    assert ids == ["vendor.good", "reference"]
    assert ({op.name: vars(op) for op in OPS.values()}, vars(CPU)) == before
    assert load_target(RMS.target) is RMS.reference


def test_all_faults_at_once_leave_core_alone(install: Install, caplog):
    for number, (source, _) in enumerate(FAULTS.values()):
        install(f"bad{number}", f"{HEAD}\n{source}\n".replace('"bad"', f'"bad{number}"'))
    configuration, warnings = start(caplog)
    assert len(warnings) == len(FAULTS)
    assert configuration.registry.vendor is CPU


def test_a_hanging_probe_costs_its_limit_and_no_more(install: Install):
    install("bad", f"{HEAD}\n{FAULTS['hang-in-the-probe'][0]}\n")
    begin = time.monotonic()
    (bad,) = (found for found in installed_vendors() if found.name == "bad")
    assert time.monotonic() - begin < 5
    assert isinstance(bad, InstalledVendor)
    assert not bad.is_available
    left_behind = [thread for thread in threading.enumerate() if thread.name == "probe of bad"]
    assert left_behind
    assert all(thread.daemon for thread in left_behind)


TARGETS = {
    "no-module": (None, "No module named"),
    "no-function": ("", "has no function 'rms_norm'"),
    "other-signature": ("def rms_norm(x, eps): return x\n", r"takes (x, eps), the contract says"),
    "missing-library": ("import no_such_library\n", "No module named 'no_such_library'"),
    "raising": ("def rms_norm(x, weight, eps, residual=None): raise OSError('lost')\n", "OSError: lost"),
    "taking-ops": ("from sglang_fl.ops import OPS\nOPS.clear()\n", "AttributeError"),
}


@pytest.mark.parametrize(("source", "fault"), TARGETS.values(), ids=TARGETS)
def test_faulty_target_is_one_message_for_all_layers_and_the_reference_runs(
    install_vendor: Install, write_module, caplog, source: str | None, fault: str
):
    module = "no_such_module" if source is None else write_module(source)
    install_vendor("good", impls=f'OpImpl("rms_norm", VENDOR, "vendor.good", "{module}:rms_norm"),')
    configuration, _ = start(caplog)
    x = torch.ones(2, 8)
    for _ in range(3):
        assert torch.equal(run_layer(configuration, x), RMS.reference(x, torch.ones(8), 1e-6))
    (message,) = (record.getMessage() for record in caplog.records)
    assert "vendor.good of rms_norm failed in its first call and is replaced" in message
    assert fault in message


def run_layer(configuration: Configuration, x: torch.Tensor) -> Any:
    """Call a layer of a class of this test's own for the first time."""
    choice = Choice(configuration.resolutions["rms_norm"], lambda kernel, fall_through: kernel)
    layer_class = f"Norm{id(configuration)}"
    first = FirstCall(lambda: choice, layer_class, pytest.fail, lambda *_: None, DispatchLog(None))
    return first(x, torch.ones(8), 1e-6)


def test_a_target_without_module_or_with_another_signature_is_told_before_it_runs(install_vendor: Install):
    install_vendor("good", impls='OpImpl("rms_norm", VENDOR, "vendor.good", "no_such.kernels:rms_norm"),')
    (good,) = (found.vendor for found in installed_vendors() if found.name == "good")
    assert isinstance(good, Vendor)
    assert check_declared(good.impls[0]) == ["no_such.kernels:rms_norm: there is no module no_such.kernels"]
