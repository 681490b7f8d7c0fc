"""From a trace to shares: each microsecond has one owner, and none is lost or counted twice."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_fl.profiling.labels import LAYER, Label
from sglang_fl.profiling.pieces import Who
from sglang_fl.profiling.shares import Phase, aten_shares, left, percents, phases_of
from sglang_fl.profiling.steps import Steps, steps_of
from sglang_fl.profiling.trace import read_trace, trace_of

PID, THREAD = 100, 100
Event = dict[str, Any]


def op(name: str, start: float, end: float, *, number: int | None = None, thread: int = THREAD) -> Event:
    """Return an op on the host."""
    return _event("cpu_op", name, start, end, thread, {"External id": number})


def range_(name: str, start: float, end: float) -> Event:
    """Return a range on the host; ``|`` is between the words of ours."""
    return _event("user_annotation", name, start, end, THREAD, {})


def step(phase: str, start: float, end: float, requests: int = 4, tokens: int = 4) -> Event:
    """Return the range of a batch."""
    return range_(f"sglang_fl|step|{phase}|{requests}|{tokens}", start, end)


def ours(name: str, kind: str, start: float, end: float, layer_class: str = "") -> Event:
    """Return the range of a kernel of layer 2."""
    return range_(f"sglang_fl|ours|{name}|{kind}|{layer_class}", start, end)


def launch(correlation: int, at: float, category: str = "cuda_runtime", thread: int = THREAD) -> Event:
    """Return the call of a runtime by which something is launched."""
    return _event(category, "cudaLaunchKernel", at, at + 1, thread, {"correlation": correlation})


def kernel(
    name: str, start: float, end: float, correlation: int | None, category: str = "kernel", **more: Any
) -> Event:
    """Return what a device did."""
    given = {"stream": 7, "correlation": correlation, **more}
    return {**_event(category, name, start, end, 7, given), "pid": 0}


def _event(category: str, name: str, start: float, end: float, thread: int, args: Event) -> Event:
    place = {"pid": PID, "tid": thread, "ts": start, "dur": end - start}
    return {"ph": "X", "cat": category, "name": name, **place, "args": args}


def layer(name: str, start: float, end: float) -> dict[str, Any]:
    return range_(f"sglang_fl|layer|{name}", start, end)


def attention(backend: str, start: float, end: float) -> dict[str, Any]:
    return range_(f"sglang_fl|attention|{backend}", start, end)


def measured(events: Sequence[dict[str, Any]]) -> Steps:
    return steps_of(trace_of(events))


def phase(events: Sequence[dict[str, Any]]) -> Phase:
    (found,) = phases_of([measured(events)])
    return found


def times(found: Phase) -> dict[tuple[str, str], float]:
    return {(share.piece.who.value, share.piece.what): share.us for share in found.shares}


def test_on_a_cpu_a_range_owns_the_ops_in_it_and_python_is_a_gap():
    found = phase(
        [
            step("decode", 0, 100),
            layer("RMSNorm", 10, 50),
            ours("rms_norm", "reference", 12, 40),
            op("aten::mul", 15, 35),
            layer("QKVParallelLinear", 60, 90),
            op("aten::linear", 62, 88),
            op("aten::mm", 65, 85),
        ]
    )
    assert times(found) == {("reference", "rms_norm"): 20, ("sglang", "QKVParallelLinear"): 26}
    assert (found.step_us, found.busy_us, found.idle_us) == (100, 46, 54)
    linear = found.shares[0]
    assert dict(linear.ops) == {"aten::mm": 20, "aten::linear": 6}


def test_a_nested_layer_owns_what_is_in_it_and_the_outer_one_the_rest():
    found = phase(
        [
            step("decode", 0, 100),
            layer("Qwen2DecoderLayer", 0, 100),
            op("aten::add", 0, 10),
            layer("SiluAndMul", 10, 40),
            op("aten::silu", 20, 30),
            op("aten::add", 50, 55),
        ]
    )
    assert times(found) == {("sglang", "Qwen2DecoderLayer"): 15, ("sglang", "SiluAndMul"): 10}


def test_a_range_within_an_op_takes_its_time_from_the_op():
    """Layer 1: PyTorch's dispatcher calls the kernel from within the op."""
    found = phase(
        [
            step("decode", 0, 50),
            op("aten::mm", 0, 40),
            range_("sglang_fl|aten|aten::mm|flagos", 10, 30),
            op("aten::empty", 12, 14),
        ]
    )
    assert times(found) == {("flagos", "aten::mm"): 20, ("sglang", "outside of layers"): 20}


def on_gpu() -> list[dict[str, Any]]:
    """Two layers, of which the second runs on another stream while the first still does."""
    return [
        step("decode", 0, 60),
        layer("RMSNorm", 1, 20),
        ours("rms_norm", "flagos", 2, 18, "RMSNorm"),
        launch(1, 5, "cuda_driver"),
        layer("RowParallelLinear", 20, 55),
        op("aten::mm", 22, 40, number=9),
        launch(2, 25),
        launch(3, 50),
        kernel("rms_norm_kernel", 100, 120, 1),
        kernel("void at::native::gemm<4, float>(int)", 130, 170, 2),
        kernel("ncclDevKernel_AllReduce_Sum", 150, 190, 3),
    ]


def test_on_a_gpu_a_kernel_belongs_to_the_range_that_launched_it():
    found = phase(on_gpu())
    assert times(found) == {
        ("flagos", "rms_norm"): 20,
        ("sglang", "RowParallelLinear"): 30,  # 20 alone, and half of 20 beside the collective
        ("collective", "collectives"): 30,
    }
    assert (found.step_us, found.busy_us, found.idle_us) == (90, 80, 10)


def test_host_time_does_not_count_where_a_device_was_watched():
    assert measured(on_gpu()).is_device
    assert not measured([step("decode", 0, 9), op("aten::mm", 1, 5)]).is_device


def test_copies_are_cut_out_of_layers_but_not_of_attention():
    found = phase(
        [
            step("decode", 0, 60),
            layer("VocabParallelEmbedding", 0, 20),
            op("aten::copy_", 1, 10),
            launch(1, 5),
            attention("triton", 20, 50),
            op("aten::copy_", 21, 30),
            launch(2, 25),
            launch(3, 40),
            kernel("elementwise", 100, 110, 1),
            kernel("elementwise", 110, 120, 2),
            kernel("Memcpy DtoD", 120, 140, 3, "gpu_memcpy"),
            launch(4, 55),
            kernel("Memcpy DtoH", 140, 145, 4, "gpu_memcpy"),
        ]
    )
    assert times(found) == {("copy", "copies"): 15, ("sglang", "RadixAttention (triton)"): 30}


def test_around_a_kernel_of_ours_is_neither_ours_nor_left_to_be_ported():
    found = phase(
        [
            step("decode", 0, 100),
            layer("RMSNorm", 0, 40),
            op("aten::view", 0, 10),
            ours("rms_norm", "vendor", 10, 30, "RMSNorm"),
            op("npu::rms_norm", 12, 28),
            attention("sglang_fl", 50, 90),
            op("aten::index_put_", 50, 60),
            ours("decode_attention", "flagos", 60, 90, ""),
            op("aten::mm", 60, 80),
        ]
    )
    assert times(found) == {
        ("around", "RMSNorm around rms_norm"): 10,
        ("vendor", "rms_norm"): 16,
        ("around", "RadixAttention around decode_attention"): 10,
        ("flagos", "decode_attention"): 20,
    }
    assert left(found, {}) == []
    assert found.percent_of(Who.VENDOR, Who.FLAGOS) == pytest.approx(64.3)


def test_a_method_of_a_layer_that_is_ours_leaves_the_layer_sglangs():
    found = phase(
        [
            step("decode", 0, 100),
            layer("Qwen3Attention", 0, 40),
            op("aten::split", 0, 10),
            ours("qk_norm_rope", "flagos", 10, 30, ""),
            op("triton", 12, 28),
        ]
    )
    assert ("sglang", "Qwen3Attention") in times(found)


def test_a_kernel_without_a_launch_is_shown_as_unknown_in_the_step_that_it_runs_in():
    found = phase([*on_gpu(), kernel("stray", 192, 196, None), kernel("stray", 122, 126, 77)])
    unknown = {what: us for (who, what), us in times(found).items() if who == "unknown"}
    assert list(unknown.values()) == [4]


def test_a_kernel_whose_launch_is_on_an_unknown_thread_is_found_by_the_op_that_it_names():
    extra = [
        launch(8, 30, thread=999),
        kernel("gemm", 200, 210, 8, **{"External id": 9}),
    ]
    assert times(phase([*on_gpu(), *extra]))["sglang", "RowParallelLinear"] == 40


def test_what_is_launched_in_no_step_is_told_apart():
    found = measured([*on_gpu(), op("aten::add", 70, 75), launch(5, 72), kernel("add", 300, 307, 5)])
    assert found.outside == 7
    assert sum(times(phases_of([found])[0]).values()) == 80


def test_only_full_decode_steps_count_and_every_prefill_does():
    events: list[dict[str, Any]] = []
    for number, (mode, requests) in enumerate(
        [("prefill", 1), ("prefill", 3), ("decode", 1), ("decode", 4), ("decode", 4), ("decode", 2)]
    ):
        start = 100 * number
        events += [step(mode, start, start + 80, requests, 7), op("aten::mm", start, start + 10 * requests)]
    decode, prefill = phases_of([measured(events)])
    assert (decode.name, decode.steps, decode.requests, decode.busy_us) == ("decode", 2, 4, 40)
    assert (prefill.name, prefill.steps, prefill.requests, prefill.busy_us) == ("prefill", 2, 2, 20)
    assert decode.between_us == 20


def test_ranks_are_taken_together():
    one = measured([step("decode", 0, 100), op("aten::mm", 0, 60)])
    other = measured([step("decode", 0, 100), op("c10d::allreduce_", 0, 20)])
    (found,) = phases_of([one, other])
    assert times(found) == {("sglang", "outside of layers"): 30, ("collective", "collectives"): 10}
    assert (found.steps, found.busy_us) == (2, 40)


def test_other_modes_are_phases_of_their_own():
    events = [step("idle", 0, 10), op("aten::mm", 0, 5), step("decode", 20, 30), op("aten::mm", 20, 25)]
    assert [found.name for found in phases_of([measured(events)])] == ["decode", "idle"]


def test_aten_ops_are_told_by_who_runs_them():
    found = phase(
        [
            step("decode", 0, 100),
            op("aten::mm", 0, 50),
            range_("sglang_fl|aten|aten::mm|flagos", 0, 50),
            layer("Sampler", 50, 100),
            op("aten::argmax", 50, 80),
            ours("rms_norm", "reference", 80, 100),
            op("aten::mul", 80, 100),
        ]
    )
    rows = [(row.op, row.who, row.share) for row in aten_shares(found)]
    assert rows == [("aten::mm", Who.FLAGOS, 0.5), ("aten::argmax", Who.SGLANG, 0.3)]


def test_what_is_left_is_sglangs_own_the_largest_first_with_our_op_for_it():
    found = phase(
        [
            step("decode", 0, 1000),
            layer("TopK", 0, 100),
            op("aten::topk", 0, 100),
            range_("sglang_fl|shortcut|fused_qk_norm", 100, 300),
            op("aten::mul", 100, 300),
            op("aten::copy_", 300, 800),
            layer("Sampler", 900, 1000),
            op("aten::argmax", 900, 905),
        ]
    )
    rows = [(each.what, each.largest_op, each.our_op) for each in left(found, {"TopK": "topk_softmax"})]
    assert rows == [("shortcut fused_qk_norm", "aten::mul", ""), ("TopK", "aten::topk", "topk_softmax")]


def test_a_name_of_somebody_elses_is_no_label():
    assert Label.read("ProfilerStep#3") is None
    assert Label.read("sglang_fl") is None
    assert Label.read(str(Label(LAYER, ("RMSNorm",)))) == Label(LAYER, ("RMSNorm",))


@pytest.mark.parametrize(
    ("text", "reason"), [("[]", "no traceEvents"), ('{"a": 1}', "no traceEvents"), ("{", "Expecting")]
)
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, text: str, reason: str):
    file = tmp_path / "trace.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_trace(file)


def test_a_trace_is_read_from_its_file(tmp_path: Path):
    file = tmp_path / "trace.json"
    file.write_text(json.dumps({"traceEvents": [*on_gpu(), {"ph": "M", "name": "process_name"}]}))
    (found,) = phases_of([steps_of(read_trace(file))])
    assert times(found) == times(phase(on_gpu()))


@given(st.lists(st.floats(0, 1e6), min_size=1).filter(lambda parts: sum(parts) > 0))
def test_percents_add_up_to_a_hundred(parts: list[float]):
    shares = [part / sum(parts) for part in parts]
    shown = percents(shares)
    assert math.isclose(sum(shown), 100.0, abs_tol=1e-6)
    assert all(abs(100 * share - percent) <= 0.1 + 1e-9 for share, percent in zip(shares, shown, strict=True))


@st.composite
def drawn_kernels(draw: st.DrawFn) -> list[dict[str, Any]]:
    events = [step("decode", 0, 1000)]
    for number in range(1, draw(st.integers(1, 20)) + 1):
        start, length = draw(st.integers(0, 500)), draw(st.integers(1, 100))
        name = draw(st.sampled_from(["A", "B", "C"]))
        at = 10 * number
        events += [layer(name, at, at + 5), launch(number, at + 2)]
        events.append(kernel(name, 2000 + start, 2000 + start + length, number))
    return events


@given(drawn_kernels())
def test_however_kernels_overlap_times_add_up_to_when_any_ran(events: list[dict[str, Any]]):
    ran = {
        at
        for event in events
        if event["cat"] == "kernel"
        for at in range(event["ts"], event["ts"] + event["dur"])
    }
    found = phase(events)
    assert sum(times(found).values()) == pytest.approx(len(ran))
    assert found.busy_us + found.idle_us == pytest.approx(found.step_us)
    assert sum(share.share for share in found.shares) == pytest.approx(1)
