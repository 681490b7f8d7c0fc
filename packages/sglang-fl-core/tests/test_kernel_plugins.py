"""What the commands say of the kernel plugins of others, which are read from source or from the log."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sglang_fl.cli import app
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.sglang_adapter.installed_plugins import AT_RUN_TIME, WHOLE_STEPS, Claim, installed_claims

REGISTERS = "BaseFusedOp.register_oot_forward"


@pytest.fixture
def install_plugin(site: Path) -> Callable[..., None]:
    """``install_plugin(source, group)`` installs a plugin of SGLang's whose import would fail."""

    def install(source: str, group: str = "sglang.srt.plugins") -> None:
        package = site / "acme_kernels" / "inner"
        package.mkdir(parents=True)
        (package.parent / "__init__.py").write_text("raise AssertionError('a listing imported me')")
        (package / "layers.py").write_text(source)
        info = site / "acme_kernels-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-kernels\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\nacme = acme_kernels.inner.layers:load\n")
        importlib.invalidate_caches()

    return install


SOURCES = {
    "a class": (f"{REGISTERS}(RMSNorm, norm, 'cpu')", "RMSNorm", "register_oot_forward"),
    "a class of a module": (
        f"{REGISTERS}(layernorm.RMSNorm, norm, 'cpu')",
        "RMSNorm",
        "register_oot_forward",
    ),
    "by keyword": (f"{REGISTERS}(fn=norm, op_cls=RMSNorm)", "RMSNorm", "register_oot_forward"),
    "in a loop": (f"for cls in TABLE:\n    {REGISTERS}(cls, 1, 'cpu')", AT_RUN_TIME, "register_oot_forward"),
    "a backend": ("class Mine(RMSNorm):\n    def forward_plugin(self): ...", "Mine", "forward_plugin"),
    "whole steps": (
        "from sglang.kernels.plugin_kernels.nvidia.spec import register",
        WHOLE_STEPS,
        "sglang.kernels.plugin_kernels.nvidia.spec",
    ),
    "unreadable": ("register_oot_forward(", AT_RUN_TIME, "its source cannot be read"),
}


@pytest.mark.parametrize(("source", "what", "how"), SOURCES.values(), ids=SOURCES.keys())
@pytest.mark.parametrize("group", ["sglang.srt.plugins", "sglang.srt.platforms"])
def test_what_a_plugin_takes_is_read_from_its_source(
    install_plugin, group: str, source: str, what: str, how: str
):
    install_plugin(source, group)
    assert installed_claims() == [Claim("acme-kernels", what, how)]
    assert "acme_kernels" not in sys.modules


def test_a_plugin_that_takes_no_layer_is_not_listed(install_plugin):
    install_plugin("def load(): ...\n# forward_plugin is not used here")
    assert installed_claims() == []


def test_we_are_no_kernel_plugin_of_somebody_else():
    assert installed_claims() == []


def test_doctor_names_what_a_plugin_takes(doctor, install_plugin):
    code, rows = doctor("--only", "kernel-plugins")
    assert (code, list(rows)) == (0, ["kernel plugins"])
    install_plugin(f"{REGISTERS}(RMSNorm, a, 'cpu')\n{REGISTERS}(SiluAndMul, b, 'cpu')")
    _, rows = doctor("--only", "kernel-plugins")
    assert "takes RMSNorm (register_oot_forward), SiluAndMul (" in rows["acme-kernels"]["text"]
    assert "SGLANG_FL_PER_OP" in rows["acme-kernels"]["remedy"]


@pytest.fixture
def sglang(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An SGLang with one class whose source has a backend for plugins, and the base that has none."""
    monkeypatch.delitem(sys.modules, "sglang", raising=False)  # another test may have imported the real one
    sources = {
        "__init__.py": "raise AssertionError('a listing imported me')",
        "kernels/fused_op.py": "class BaseFusedOp:\n    def forward_plugin(self): raise NotImplementedError",
        "srt/layers/activation.py": "from sglang.kernels.fused_op import BaseFusedOp\n"
        "class SiluAndMul(BaseFusedOp): ...\n"
        "class Newcomer(BaseFusedOp):\n    def forward_plugin(self): ...\n"
        "class Below(Newcomer): ...",
    }
    for name, source in sources.items():
        path = site / "sglang" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


@pytest.mark.usefixtures("sglang")
def test_coverage_names_what_plugins_take(install_plugin):
    install_plugin(f"{REGISTERS}(RMSNorm, norm, 'cpu')")
    result = CliRunner().invoke(app, ["coverage", "--json"])
    rows = json.loads(result.stdout)["kernel_plugins"]
    of_sglang = {"plugin": "one that SGLang does not name", "how": "forward_plugin"}
    assert rows == [
        {"plugin": "acme-kernels", "what": "RMSNorm", "how": "register_oot_forward"},
        {**of_sglang, "what": "Below"},
        {**of_sglang, "what": "Newcomer"},
    ]
    printed = CliRunner().invoke(app, ["coverage"], env={"COLUMNS": "200"}).stdout
    assert "acme-kernels" in printed.partition("Kernel plugins of others")[2]


def test_report_names_what_kernel_plugins_ran(tmp_path: Path):
    log = DispatchLog(tmp_path / "d")
    log.write("RMSNorm", "sglang(plugin:acme_kernels)")
    log.write("RMSNorm", "reference(reference)")
    log.write("LlamaForCausalLM", "sglang(plugin)")
    log.write("SiluAndMul", "sglang(pinned)")
    words = ["report", "--dispatch", str(tmp_path / "d")]
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert told["kernel_plugins"] == [
        {"ran": "LlamaForCausalLM", "plugin": "not named"},
        {"ran": "RMSNorm", "plugin": "acme_kernels"},
    ]
    assert told["no_log_lines"] == []
    assert "acme_kernels" in CliRunner().invoke(app, words).stdout.partition("Run by kernel plugins")[2]
