"""A SGLang that has a platform for MLUs itself, as a later release may: the installed one with a stub.

The stub is what such a change needs at least: a member of the enumeration, a class, a branch where the
platform is chosen, a dispatch key with a kernel, and its name wherever SGLang asks for an out-of-tree device.
"""

import re
from pathlib import Path

__all__ = ["KEY", "MARK", "with_platform"]

KEY = "mlu"
#: The variable with the file that SGLang's own kernel of ``SiluAndMul`` makes when it runs there.
MARK = "FORWARD_MLU"

_PLATFORM = """
import torch
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform


class MluSRTPlatform(SRTPlatform):
    _enum = PlatformEnum.MLU
    device_name = device_type = "mlu"

    def get_device(self, device_id=0):
        return "mlu"

    def set_device(self, device):
        torch.mlu.set_device(device)

    def get_device_total_memory(self, device_id=0):
        return torch.mlu.mem_get_info(device_id)[1]

    def get_current_memory_usage(self, device=None):
        free, total = torch.mlu.mem_get_info(device)
        return total - free

    def get_torch_distributed_backend_str(self):
        return "cncl"

    def get_group_coordinator_device(self, local_rank):
        return torch.device("mlu", local_rank)

    def get_default_attention_backend(self):
        return "torch_native"

    def get_compile_backend(self, mode=None):
        return "eager"
"""

_BRANCH = """\
        if hasattr(torch, "mlu"):
            from sglang.srt.platforms.mlu import MluSRTPlatform
            return MluSRTPlatform()
"""
_KEY = f"""\
    from sglang.srt.platforms import current_platform
    if current_platform.device_type == "mlu":
        return "{KEY}"
"""
_KERNEL = f"""
    def forward_{KEY}(self, *args, **kwargs):
        open(os.environ["{MARK}"], "a").close()
        return self.forward_native(*args, **kwargs)
"""

#: File below ``sglang`` -> a text of it, and what such a release has before and behind it.
_CHANGES = {
    "srt/platforms/device_mixin.py": [("    OOT = enum.auto()", "    MLU = enum.auto()\n", "")],
    "srt/platforms/__init__.py": [("        if _is_mps_available():", _BRANCH, "")],
    "kernels/fused_op.py": [("    if is_cuda():", _KEY, "")],
    "srt/layers/activation.py": [
        ("class SiluAndMul(BaseFusedOp):\n", "", _KERNEL),
        ("import torch\n", "import os\n", ""),
    ],
}
_OUT_OF_TREE = re.compile(r"(\b[\w.]+)\.is_out_of_tree\(\)")


def with_platform(installed: Path, folder: Path) -> Path:
    """Write a copy of SGLang with the stub, of links but for the files that differ, and return its folder.

    Parameters
    ----------
    installed : the folder of the installed package ``sglang``
    folder : an empty one, which goes on ``PYTHONPATH``
    """
    texts = {name: _changed(installed / name, changes) for name, changes in _CHANGES.items()}
    for file in (installed / "srt").rglob("*.py"):
        name = str(file.relative_to(installed))
        text = file.read_text()
        if name not in texts and _OUT_OF_TREE.search(text) and file.parent.name != "platforms":
            texts[name] = _OUT_OF_TREE.sub(r'(\1.is_out_of_tree() or \1.device_type == "mlu")', text)
    texts["srt/platforms/mlu.py"] = _PLATFORM
    _link(installed, folder / "sglang", texts)
    return folder


def _changed(file: Path, changes: list[tuple[str, str, str]]) -> str:
    text = file.read_text()
    for found, before, behind in changes:
        assert found in text, f"{file} no longer has {found!r}"
        text = text.replace(found, f"{before}{found}{behind}", 1)
    return text


def _link(source: Path, target: Path, texts: dict[str, str]) -> None:
    """Make a folder of links; only folders above a text are folders, so that a file finds its neighbours."""
    target.mkdir(parents=True)
    written = {name.partition("/")[0] for name in texts}
    for entry in source.iterdir():
        if entry.name not in written:
            (target / entry.name).symlink_to(entry)
    for name in written:
        below = {
            path.removeprefix(f"{name}/"): text for path, text in texts.items() if path.startswith(f"{name}/")
        }
        if below:
            _link(source / name, target / name, below)
        else:
            (target / name).write_text(texts[name])
