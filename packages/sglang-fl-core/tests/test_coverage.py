"""The fused layer classes of an SGLang, read from its source."""

from pathlib import Path
from textwrap import dedent

import pytest

from sglang_fl.sglang_adapter.coverage import NOT_DISPATCHED, adapter_of, coverage
from sglang_fl.sglang_adapter.layers import ADAPTERS
from sglang_fl.sglang_adapter.source import FusedClass, fused_classes

LAYERS = {
    "kernels/fused_op.py": "class BaseFusedOp(nn.Module, ABC):\n    def forward(self): ...",
    "srt/layers/activation.py": """
        from sglang.kernels.fused_op import BaseFusedOp

        class SiluAndMul(BaseFusedOp):
            def forward_native(self, x):
                forward_count = 1

        class Unrelated(nn.Module):
            pass
    """,
}


@pytest.fixture
def package(tmp_path: Path):
    """Return a function that writes an SGLang of these files beside ``LAYERS``."""

    def write(**files: str) -> Path:
        for name, text in {**LAYERS, **{f"srt/models/{key}.py": text for key, text in files.items()}}.items():
            path = tmp_path / "sglang" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(text))
        return tmp_path / "sglang"

    return write


def found(package: Path) -> dict[str, FusedClass]:
    return {cls.path.rpartition(":")[2]: cls for cls in fused_classes(package)}


def test_a_class_counts_where_its_bases_lead_to_the_base_of_the_fused_layers(package):
    assert list(found(package())) == ["SiluAndMul"]


FROM_ACTIVATION = "from sglang.srt.layers.activation import"

SUBCLASSES = {
    "imported": f"{FROM_ACTIVATION} SiluAndMul\nclass Mine(SiluAndMul): ...",
    "renamed": f"{FROM_ACTIVATION} Other, SiluAndMul as Gate\nclass Mine(Gate): ...",
    "assigned": (f"{FROM_ACTIVATION} SiluAndMul\nGate = SiluAndMul\nclass Mine(Gate): ..."),
    "of-a-module": "from sglang.srt.layers import activation\nclass Mine(activation.SiluAndMul): ...",
    "of-a-renamed-module": "import sglang.srt.layers.activation as a\nclass Mine(a.SiluAndMul): ...",
    "of-a-dotted-module": (
        "import sglang.srt.layers.activation\nclass Mine(sglang.srt.layers.activation.SiluAndMul): ..."
    ),
    "relative": "from ..layers.activation import SiluAndMul\nclass Mine(SiluAndMul): ...",
    "exported-again": "from sglang.srt.models.exports import Gate\nclass Mine(Gate): ...",
    "second-base": (f"{FROM_ACTIVATION} SiluAndMul\nclass Mixin: ...\nclass Mine(Mixin, SiluAndMul): ..."),
    "generic": f"{FROM_ACTIVATION} SiluAndMul\nclass Mine(SiluAndMul[int]): ...",
    "several-lines": (f"{FROM_ACTIVATION} SiluAndMul\nclass Mine(\n    SiluAndMul,\n    Other,\n): ..."),
    "in-a-branch": (f"{FROM_ACTIVATION} SiluAndMul\nif True:\n    class Mine(SiluAndMul): ..."),
}


@pytest.mark.parametrize("source", SUBCLASSES.values(), ids=SUBCLASSES.keys())
def test_a_base_is_followed_however_it_is_named(package, source: str):
    exports = f"{FROM_ACTIVATION} SiluAndMul as Gate"
    mine = found(package(mine=source, exports=exports))["Mine"]
    assert "sglang.srt.layers.activation:SiluAndMul" in mine.ancestors


def test_a_class_of_the_same_name_elsewhere_is_another(package):
    own = "class SiluAndMul(nn.Module): ...\nclass Mine(SiluAndMul): ..."
    assert set(found(package(mine=own))) == {"SiluAndMul"}


def test_the_diffusion_package_and_tests_are_left_out(package):
    root = package()
    for folder in ("multimodal_gen", "test"):
        (root / folder).mkdir()
        (root / folder / "layers.py").write_text(f"{FROM_ACTIVATION} SiluAndMul\nclass Mine(SiluAndMul): ...")
    assert list(found(root)) == ["SiluAndMul"]


def test_what_a_class_body_defines_counts_and_what_its_methods_do_does_not(package):
    source = """
        from sglang.srt.layers.activation import SiluAndMul

        class Mine(SiluAndMul):
            if True:
                forward_native = SiluAndMul.forward_native
            def other(self):
                forward_inner = 1
    """
    classes = found(package(mine=source))
    silu = "sglang.srt.layers.activation:SiluAndMul"
    assert classes["Mine"].forwards["sglang.srt.models.mine:Mine"] == {"forward_native"}
    assert classes["SiluAndMul"].forwards[silu] == {"forward_native"}


@pytest.mark.parametrize(
    ("body", "adapted"),
    [("cache = 1", "sglang.srt.layers.activation:SiluAndMul"), ("def forward_cuda(self): ...", None)],
)
def test_a_subclass_is_covered_unless_it_defines_a_forward(package, body: str, adapted: str | None):
    source = f"{FROM_ACTIVATION} SiluAndMul\nclass Mine(SiluAndMul):\n    {body}"
    mine = found(package(mine=source))["Mine"]
    assert adapter_of(mine, {"sglang.srt.layers.activation:SiluAndMul"}) == adapted


def test_coverage_tells_the_op_or_the_reason(package):
    source = """
        from sglang.kernels.fused_op import BaseFusedOp

        class Conv(BaseFusedOp):
            def forward_native(self): ...
    """
    rows = {row.layer_class: row for row in coverage(package(conv=source))}
    assert rows["sglang.srt.layers.activation:SiluAndMul"].ops == ("silu_and_mul",)
    assert (rows["sglang.srt.models.conv:Conv"].ops, rows["sglang.srt.models.conv:Conv"].reason) == ((), "")


def test_no_class_has_both_an_adapter_and_a_reason_to_have_none():
    both = sorted(NOT_DISPATCHED.keys() & ADAPTERS.keys())
    assert both == [], "coverage.py: strike from NOT_DISPATCHED what has an adapter"
