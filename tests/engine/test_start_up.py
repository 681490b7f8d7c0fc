"""What a server start refuses, with one message and code 2, before a model is loaded; what it survives."""

import sys
from pathlib import Path

import pytest

from sglang_fl import __version__
from sglang_fl.sglang_adapter.releases import FORCED_BACKEND, supported_range
from tests.engine.fake_vendor import install_vendor
from tests.engine.release import RELEASE, SEAM, UNSUPPORTED, present
from tests.programs import Run, finish, finish_started, server_for

pytestmark = pytest.mark.timeout(200)

AVAILABLE = """
from sglang_fl.vendor import Vendor

VENDOR = Vendor("{name}", device_type="{name}", core_api=1, probe="{name}_vendor:why_unavailable")


def why_unavailable():
    return None
"""

OLDER = """
from sglang_fl.vendor import Vendor

VENDOR = Vendor("older", device_type="x", core_api=0, probe="older_vendor:why_unavailable")
"""

#: Runs as a module on PYTHONPATH that Python imports at its start; renames what layer 2 hooks.
RENAMED_METHOD = f"""
import pkgutil

owner = pkgutil.resolve_name("{SEAM.owner}")
owner._renamed = owner.{SEAM.method}
del owner.{SEAM.method}
"""

#: Lets SGLang fail while it applies the hooks, as it does on a target that it cannot patch.
BROKEN_APPLICATION = """
from sglang.srt.plugins.hook_registry import HookRegistry


def fail(cls, target, hooks):
    raise TypeError("cannot patch " + target)


HookRegistry._apply_target = classmethod(fail)
"""


@pytest.fixture
def launch(tiny_model: Path, environment_of):
    """Return a function that starts the server and expects it to end by itself.

    Forked, it has SGLang loaded, which asks for the platform as it did when it was imported; with a variable
    of SGLang's it imports SGLang itself.
    """

    def start(settings: dict[str, str], prelude: str = "", is_forked: bool = True) -> Run:
        code = f"import runpy, sys\n{prelude}\nrunpy.run_module('sglang.launch_server', run_name='__main__')"
        command = [sys.executable, "-c", code, "--model-path", str(tiny_model), "--max-total-tokens", "2048"]
        environment = environment_of(settings)
        if not is_forked:
            return finish_started(command, environment, timeout=150)
        return finish(command, environment, 150, server_for(environment))

    return start


def refused(run: Run) -> str:
    """Return the message of a start that was refused as it should be."""
    assert run.code == 2, run.output[-3000:]
    assert "Traceback" not in run.output
    assert "Load weight" not in run.output
    messages = [line for line in run.output.splitlines() if line.startswith("sglang-fl: ")]
    assert len(messages) == 1, messages
    return messages[0]


WRONG = {
    "prefer": (
        {"SGLANG_FL_PREFER": "flagso"},
        ["SGLANG_FL_PREFER='flagso'", "flagos, reference, sglang, vendor"],
    ),
    "unknown-op": ({"SGLANG_FL_PER_OP": "rms_nrom=vendor"}, ["'rms_nrom'", "Nearest: rms_norm"]),
    "empty-item": ({"SGLANG_FL_PER_OP": ";;"}, ["SGLANG_FL_PER_OP=';;'", "op=kind"]),
    "unknown-vendor": (
        {"SGLANG_FL_PLATFORM": "mlu"},
        ["SGLANG_FL_PLATFORM='mlu'", "Valid: cpu", "sglang-fl-mlu"],
    ),
    "missing-folder": (
        {"SGLANG_FL_DISPATCH_LOG": "/no/such/folder/dispatch.log"},
        ["SGLANG_FL_DISPATCH_LOG='/no/such/folder/dispatch.log'", "No such file or directory"],
    ),
    "read-only-folder": (
        {"SGLANG_FL_DISPATCH_LOG": "/proc/dispatch.log"},  # read-only for root as well
        ["SGLANG_FL_DISPATCH_LOG='/proc/dispatch.log'", "writable folder"],
    ),
    "not-implemented": (
        {"SGLANG_FL_DIST_BACKEND": "flagcx"},
        ["SGLANG_FL_DIST_BACKEND='flagcx'", "not implemented"],
    ),
    "unmet-request": (
        {"SGLANG_FL_PER_OP": "silu_and_mul=flagos;rms_norm=reference"},
        ["'silu_and_mul=flagos'", "vendor cpu has none", "Available for silu_and_mul: reference"],
    ),
}


@pytest.mark.parametrize(("settings", "parts"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_setting_stops_the_start_with_one_message(launch, settings, parts):
    message = refused(launch(settings))
    for part in parts:
        assert part in message


@present(RELEASE in FORCED_BACKEND, "layer that SGLANG_FORCE_FUSED_OP_BACKEND reaches")
def test_a_forced_backend_and_a_named_op_stop_the_start(launch):
    message = refused(
        launch({"SGLANG_FORCE_FUSED_OP_BACKEND": "torch", "SGLANG_FL_OOT_WHITELIST": "RMSNorm"})
    )
    assert "SGLANG_FORCE_FUSED_OP_BACKEND='torch'" in message
    assert "SGLANG_FL_OOT_WHITELIST names rms_norm. Unset one." in message


def test_two_available_vendors_stop_the_start(launch, tmp_path: Path):
    for name in ("alpha", "beta"):
        install_vendor(tmp_path, name, AVAILABLE.format(name=name))
    message = refused(launch({"PYTHONPATH": str(tmp_path)}, is_forked=False))  # as a user does
    assert "SGLANG_FL_PLATFORM is not set" in message
    assert "alpha (alpha_vendor 0.0.1), beta (beta_vendor 0.0.1)" in message


def test_sglangs_selector_is_answered_with_ours_where_sglang_has_the_platform(launch):
    settings = {"SGLANG_PLATFORM": "sglang_fl", "SGLANG_USE_CPU_ENGINE": "1"}
    assert "set SGLANG_FL_PLATFORM" in refused(launch(settings))


def test_a_renamed_method_stops_the_start(launch):
    message = refused(launch({}, prelude=RENAMED_METHOD))
    assert SEAM.target in message
    assert "does not exist" in message


def test_hooks_that_sglang_fails_to_apply_stop_the_start(launch):
    run = launch({}, prelude=BROKEN_APPLICATION)
    assert run.code == 2
    assert f"{SEAM.method}, where layer 2 enters, was not hooked" in run.output


#: Loads the plugins as a server does, under another version of SGLang, and tells who resolves a layer.
OTHER_RELEASE = f"""
import sglang.version

sglang.version.__version__ = "{UNSUPPORTED}"
from sglang.srt.plugins import load_plugins

load_plugins()
from sglang.srt.layers.activation import SiluAndMul
from tests.engine.conftest import publish_server_args

publish_server_args()
print("resolves to", SiluAndMul().{SEAM.method}().__name__)
"""


def test_an_unsupported_release_is_left_as_it_is_with_one_warning(environment_of):
    run = finish([sys.executable, "-c", OTHER_RELEASE], environment_of({}), timeout=60)
    assert run.code == 0, run.output
    assert run.output.count(f"SGLang {UNSUPPORTED} is not supported ({supported_range()} are)") == 1
    assert "resolves to forward_native" in run.output


def test_an_unsupported_release_refuses_a_backend_asked_for_by_name(environment_of):
    settings = {"SGLANG_FL_PER_OP": "rms_norm=reference"}
    message = refused(finish([sys.executable, "-c", OTHER_RELEASE], environment_of(settings), timeout=60))
    assert f"SGLANG_FL_PER_OP is set, but SGLang {UNSUPPORTED} is not supported" in message


LOAD = "from sglang.srt.plugins import load_plugins; load_plugins()"


def test_a_forced_backend_is_warned_of_where_it_reaches_the_layers(environment_of):
    settings = {"SGLANG_FORCE_FUSED_OP_BACKEND": "torch"}
    run = finish([sys.executable, "-c", LOAD], environment_of(settings), timeout=60)
    assert run.code == 0, run.output
    warnings = run.output.count("SGLANG_FORCE_FUSED_OP_BACKEND='torch': layers that have this backend are")
    assert warnings == (RELEASE in FORCED_BACKEND)


def test_broken_vendor_packages_harm_nobody(run_offline, tmp_path: Path):
    install_vendor(tmp_path, "broken", "import no_such_library")
    install_vendor(tmp_path, "wrong", "VENDOR = 'a string'")
    install_vendor(tmp_path, "older", OLDER)
    log = tmp_path / "dispatch.log"
    run = run_offline({"PYTHONPATH": str(tmp_path), "SGLANG_FL_DISPATCH_LOG": str(log)})
    assert run.code == 0, run.output[-3000:]
    assert len(set(log.read_text().splitlines())) == 4
    for name, fault in {
        "broken": "ModuleNotFoundError: No module named 'no_such_library'",
        "wrong": "its entry point names a str",
        "older": (
            f"it was written for core API 0, sglang-fl-core {__version__} has 1: "
            "upgrade older_vendor to a version later than 0.0.1, one for core API 1"
        ),
    }.items():
        assert run.output.count(f"vendor {name} ({name}_vendor 0.0.1) is left out: {fault}") == 1
