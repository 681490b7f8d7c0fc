"""Each fused layer class of each supported release has an adapter, or a line that says why not.

The source is read, nothing of a release is imported: classes of other chips and models count too.
"""

import functools

import pytest

from sglang_fl.sglang_adapter import source
from sglang_fl.sglang_adapter.coverage import NOT_DISPATCHED, adapter_of
from sglang_fl.sglang_adapter.layers import ADAPTERS
from sglang_fl.sglang_adapter.source import FusedClass, fused_classes
from tests.releases.sources import RELEASES, package

pytestmark = pytest.mark.timeout(300)

# The kernels of the gated delta rule are methods of an object, not layer classes.
ADAPTED = {path for path in ADAPTERS if "." not in path.partition(":")[2]}


@pytest.fixture(scope="module")
def classes() -> dict[str, list[FusedClass]]:
    """The fused layer classes of each release; a file that several releases have is parsed once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "_read", functools.cache(source._read))
        return {release: fused_classes(package(release)) for release in RELEASES}


@pytest.mark.parametrize("release", RELEASES)
def test_each_class_of_a_release_has_an_adapter_or_a_reason(classes, release: str):
    unknown = {
        cls.path
        for cls in classes[release]
        if adapter_of(cls, ADAPTED) is None and cls.path not in NOT_DISPATCHED
    }
    assert unknown == set()


def test_each_reason_is_about_a_class_that_a_release_has_and_that_has_no_adapter(classes):
    left = {cls.path for found in classes.values() for cls in found if adapter_of(cls, ADAPTED) is None}
    assert NOT_DISPATCHED.keys() - left == set()


def test_each_adapter_is_for_a_class_that_a_release_has(classes):
    assert ADAPTED - {cls.path for found in classes.values() for cls in found} == set()


@pytest.mark.parametrize("release", RELEASES)
def test_classes_below_others_are_found_too(classes, release: str):
    found = {cls.path: cls for cls in classes[release]}
    llama3 = found["sglang.srt.layers.rotary_embedding.rope_variant:Llama3RotaryEmbedding"]
    assert "sglang.srt.layers.rotary_embedding.base:RotaryEmbedding" in llama3.ancestors
    assert "sglang.srt.models.glm_ocr:GlmOcrRMSNorm" in found  # a subclass of an imported subclass
