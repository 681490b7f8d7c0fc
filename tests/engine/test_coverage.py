"""What is read from SGLang's source is what Python makes of it."""

import importlib
from importlib import util
from pathlib import Path

import pytest

from sglang_fl.sglang_adapter.coverage import adapter_of
from sglang_fl.sglang_adapter.layer_lists import ABOVE, class_name
from sglang_fl.sglang_adapter.layers import ADAPTERS
from sglang_fl.sglang_adapter.layers.adapter import covering
from sglang_fl.sglang_adapter.source import FusedClass, fused_classes

FOUND = fused_classes(Path(util.find_spec("sglang").submodule_search_locations[0]))
#: The rest needs an accelerator's libraries, or is the code of one model.
LAYERS = [cls for cls in FOUND if cls.path.startswith("sglang.srt.layers.") and ".attention." not in cls.path]


def path_of(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


@pytest.mark.parametrize("read", LAYERS, ids=lambda read: read.path.rpartition(":")[2])
def test_a_class_is_read_as_python_builds_it(read: FusedClass):
    module, _, name = read.path.partition(":")
    cls = getattr(importlib.import_module(module), name)
    assert list(read.ancestors) == [path_of(a) for a in cls.__mro__ if a.__module__.startswith("sglang.")]
    for ancestor in cls.__mro__:
        if path_of(ancestor) in read.forwards:
            forwards = {name for name in vars(ancestor) if name.startswith("forward")}
            assert read.forwards[path_of(ancestor)] == forwards
    assert (adapter_of(read, ADAPTERS) is None) == (covering(cls, ADAPTERS) == ())


def test_lists_know_which_adapted_classes_derive_from_others():
    names = {class_name(path) for path in ADAPTERS}
    above = {
        class_name(cls.path): tuple(name for name in map(class_name, cls.ancestors[1:]) if name in names)
        for cls in FOUND
        if cls.path in ADAPTERS
    }
    assert {name: found for name, found in above.items() if found} == ABOVE
