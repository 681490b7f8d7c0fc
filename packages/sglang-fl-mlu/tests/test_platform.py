"""The SGLang platform on the simulated chip: every answer that SGLang asks for."""

import inspect
import subprocess
import sys
from unittest import mock

import pytest
import torch

pytestmark = pytest.mark.on_chip("mlu")


def platform():
    from sglang_fl_mlu.platform import MluPlatform

    return MluPlatform()


def test_it_is_the_platform_that_sglang_takes():
    from sglang.srt.platforms import current_platform

    assert type(current_platform) is type(platform())
    assert current_platform.is_out_of_tree()
    assert (current_platform.device_type, current_platform.get_device()) == ("mlu", "mlu")


def test_memory_figures_are_the_devices():
    mlu = platform()
    total, used = mlu.get_device_total_memory(), mlu.get_current_memory_usage()
    kept = torch.empty(1 << 20, dtype=torch.uint8, device="mlu")
    assert mlu.get_device_total_memory() == total == torch.mlu.mem_get_info()[1]
    assert mlu.get_current_memory_usage() == used + len(kept)
    assert mlu.get_current_memory_usage(torch.device("mlu", 1)) == 0
    assert mlu.get_available_memory() == (total - used - len(kept), total)


def test_devices_have_names_numbers_and_identifiers():
    mlu = platform()
    mlu.set_device(torch.device("mlu", 1))
    assert torch.mlu.current_device() == 1
    mlu.set_device(torch.device("mlu", 0))
    mlu.synchronize()
    mlu.empty_cache()
    assert mlu.get_device_name() == "simulated mlu"
    assert mlu.get_device_uuid(0) != mlu.get_device_uuid(1)
    assert mlu.get_device_capability() is None
    assert mlu.get_group_coordinator_device(1) == torch.device("mlu", 1)


def test_what_sglang_chooses_by():
    mlu = platform()
    assert mlu.get_torch_distributed_backend_str() == "cncl"
    assert mlu.get_default_attention_backend() == "torch_native"
    assert mlu.get_dispatch_key_name() == "native"
    assert mlu.get_compile_backend() in torch._dynamo.list_backends(())
    assert mlu.is_pin_memory_available(torch.device("mlu"))
    assert not mlu.is_pin_memory_available("cpu")
    assert mlu.supports_speculative_algorithm("EAGLE")
    assert not mlu.supports_speculative_algorithm("NGRAM")
    assert mlu.get_default_speculative_draft_attention_backend("EAGLE") == "sglang_fl"
    activity = mlu.get_torch_profiler_activity()
    assert activity is getattr(torch.profiler.ProfilerActivity, mlu.get_torch_profiler_activity_str())


def test_no_question_of_this_sglang_is_left_unanswered():
    mlu = platform()
    unanswered = set()
    for name, method in inspect.getmembers(mlu, inspect.ismethod):
        needed = [p for p in inspect.signature(method).parameters.values() if p.default is p.empty]
        try:
            if not needed and name.startswith(("get_", "is_", "support")):
                method()
        except NotImplementedError:
            unanswered.add(name)
    assert unanswered == set()


def test_core_steps_aside_where_sglang_has_a_platform_itself():
    from sglang_fl import plugin
    from sglang_fl.sglang_adapter import seams

    assert (seams.has_platform("npu"), seams.has_platform("mlu")) == (True, False)
    assert plugin.activate_platform() == "sglang_fl_mlu.platform.MluPlatform"
    with mock.patch.object(seams, "has_platform", return_value=True):
        assert plugin.activate_platform() is None


def test_defining_it_imports_nothing_more_of_sglang():
    code = """
import sys
from sglang_fl.conformance.simulated import find_chip, load
load(find_chip("mlu"))
import sglang.srt.platforms.interface
before = set(sys.modules)
import sglang_fl_mlu.platform
print([name for name in set(sys.modules) - before if name.startswith("sglang.")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
