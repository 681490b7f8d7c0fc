"""Each shortcut of the catalogue is there in the releases that it claims, and in no other.

The source is read, nothing of a release is imported: names that only a GPU's process defines count too.
"""

import ast

import pytest
from packaging.version import Version

from sglang_fl.sglang_adapter.kernel_faults import KERNEL_FAULTS
from sglang_fl.sglang_adapter.releases import KERNEL_PLUGINS, seam_path
from sglang_fl.sglang_adapter.shortcuts import DIRECT_CALLS, SHORTCUTS
from tests.releases.sources import RELEASES, body, package, parsed, source

pytestmark = pytest.mark.timeout(300)

SWITCHES = {switch.target: switch for shortcut in SHORTCUTS for switch in shortcut.switches}
TARGETS = {shortcut.target: shortcut for shortcut in SHORTCUTS}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("known", [*TARGETS.values(), *SWITCHES.values()], ids=lambda known: known.target)
def test_a_target_is_there_in_the_releases_that_it_claims_and_in_no_other(known, release: str):
    assert (body(release, known.target) is not None) == (Version(release) in known.releases)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("call", DIRECT_CALLS, ids=lambda call: f"{call.owner}-{call.op}")
def test_a_direct_call_is_there_in_the_releases_that_it_claims_and_in_no_other(call, release: str):
    module, _, owner = call.owner.partition(":")
    text = source(release, module)
    classes = [node for node in ast.walk(parsed(text)) if isinstance(node, ast.ClassDef)]
    calls = [ast.get_source_segment(text, node) for node in classes if node.name == owner]
    assert any(".forward_native(" in found for found in calls) == (Version(release) in call.releases)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("shortcut", [s for s in SHORTCUTS if s.switches], ids=lambda s: s.target)
def test_a_shortcut_has_one_switch_in_each_release_that_has_it(shortcut, release: str):
    version = Version(release)
    assert sum(version in switch.releases for switch in shortcut.switches) == (version in shortcut.releases)


#: What the code that takes a path must say for our reading of it to hold.
PREMISES = {
    "sglang.srt.models.utils.apply_qk_norm": [
        "alt_stream: Optional[torch.cuda.Stream] = None,\n    allow_inplace: bool = True,\n)",
        "and allow_inplace",
        "q = q_by_head.view(q.shape)",
    ],
    "sglang.srt.models.qwen3_moe.Qwen3MoeAttention.apply_qk_norm_rope": [
        "self.use_fused_qk_norm_rope and qkv.dtype == torch.bfloat16",
        "self._used_fused_qk_norm_rope_last_call = True",
        "self._used_fused_qk_norm_rope_last_call = False",
    ],
    "sglang.srt.models.mellum.MellumAttention.apply_qk_norm_rope": [
        "self.use_fused_qk_norm_rope and qkv.dtype == torch.bfloat16",
        "self._used_fused_qk_norm_rope_last_call = True",
        "self._used_fused_qk_norm_rope_last_call = False",
    ],
    "sglang.srt.layers.layernorm._forward_with_allreduce_fusion": [
        "norm_module.variance_epsilon",
        "return norm_module.forward(x, residual, post_residual_addition)",
    ],
}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("target", PREMISES)
def test_the_code_of_a_shortcut_is_as_it_was_read(target: str, release: str):
    if Version(release) in TARGETS[target].releases:
        text = body(release, target)
        assert [premise for premise in PREMISES[target] if premise not in text] == []


@pytest.mark.parametrize("release", RELEASES)
def test_nobody_passes_what_allows_a_fused_norm_by_its_place(release: str):
    for path in (package(release) / "srt").rglob("*.py"):
        text = path.read_text()
        if "import apply_qk_norm" not in text and "    apply_qk_norm,\n" not in text:
            continue
        for node in ast.walk(parsed(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "apply_qk_norm":
                assert len(node.args) <= 6, f"{path}:{node.lineno}"


@pytest.mark.parametrize("release", RELEASES)
def test_the_kernel_of_the_gated_prologue_takes_axes_in_the_releases_where_it_is_right(release: str):
    files = list((package(release)).rglob("fused_qk_rmsnorm_rope_gate.py"))
    (fault,) = (fault for fault in KERNEL_FAULTS if fault.shortcut == "fused_qk_norm_rope_gate")
    (text,) = (file.read_text() for file in files)
    assert ("mrope_axis_map" in text) == (Version(release) not in fault.releases)
    assert ("mrope_axis_map=" in body(release, fault.target)) == (Version(release) not in fault.releases)


#: What SGLang does with a kernel plugin for our reading of it to hold: a file, and what stands in it.
OF_KERNEL_PLUGINS = {
    "kernels/fused_op.py": ['KernelBackend.PLUGIN: "forward_plugin"', "self._dynamic_backend_candidates ="],
    "kernels/spec.py": ['PLUGIN = "plugin"'],
    "srt/kernel_plugins/nvidia/binding.py": ['model.__dict__["_megakernel"] = built', "self.built.forward("],
    "srt/kernel_plugins/amd/binding.py": ["model._monokernel_unread_metadata =", "return built.forward("],
}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("file", OF_KERNEL_PLUGINS)
def test_kernel_plugins_come_in_as_they_were_read(release: str, file: str):
    path = package(release) / file
    text = path.read_text() if path.exists() else ""
    premises = [premise in text for premise in OF_KERNEL_PLUGINS[file]]
    has_plugins = Version(release) in KERNEL_PLUGINS
    assert premises[0] == has_plugins
    assert all(premises) or not has_plugins


@pytest.mark.parametrize("release", RELEASES)
def test_a_plugin_may_register_a_forward_in_every_release(release: str):
    path, _, _ = seam_path(Version(release)).rpartition(".")
    text = source(release, path.rpartition(".")[0])
    assert "_oot_forward_registry" in text
    assert "__get__(self)" in text
