"""Calls of ATen ops as a mode of PyTorch's dispatcher keeps them, and as they come back from disk."""

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sglang_fl.aten.call_check import overload_of
from sglang_fl.aten.recorded_calls import CallMode, load_call, watch_batches
from sglang_fl.dispatch.kept_calls import CallFolder, kept_files
from sglang_fl.dispatch.layer_2_calls import marked
from sglang_fl.tune.calls import recorded_calls
from sglang_fl.vendor import AtenOp

Record = Callable[..., dict[str, list[Any]]]


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """``record(names, function)`` runs a function; returns the calls of these ops, by their exact names."""

    def record(names: str, function: Callable[[], object], room: int = 1 << 20) -> dict[str, list[Any]]:
        ops = [AtenOp(name, name.partition(".")[0]) for name in names.split()]
        with torch.inference_mode(), CallMode(ops, "cpu", CallFolder(tmp_path / "calls", room)):
            function()
        found = recorded_calls(tmp_path / "calls")
        return {op: [load_call(call.path) for call in calls] for op, calls in found.items()}

    return record


def test_a_call_comes_back_as_it_was(record: Record):
    memory = torch.arange(24.0).reshape(4, 6)
    given = memory.t()[1:3, ::2]
    calls = record("mul.Tensor add.Tensor", lambda: (given * given, torch.add(given, 2.0, alpha=3)))
    ((x, y), options) = calls["aten::mul.Tensor"][0]
    assert (x.stride(), x.storage_offset() % 64, options) == (given.stride(), given.storage_offset(), {})
    assert torch.equal(x, given)
    assert torch.equal(y, given)
    ((x, number), options) = calls["aten::add.Tensor"][0]
    assert (number, options) == (2.0, {"alpha": 3})


def test_lists_missing_arguments_and_constants_come_back(record: Record):
    x = torch.ones(2, 3)

    def run() -> None:
        torch.cat([x, x[:1]])
        x.to(torch.bfloat16, memory_format=torch.contiguous_format)
        x[:, torch.tensor([1])] = torch.tensor(5.0)
        torch.zeros(4, device="cpu", dtype=torch.int32)

    calls = record("cat _to_copy index_put_ zeros", run)
    ((parts,), _) = calls["aten::cat.default"][0]
    assert [part.shape for part in parts] == [(2, 3), (1, 3)]
    assert calls["aten::_to_copy.default"][0][1] == {
        "dtype": torch.bfloat16,
        "memory_format": torch.contiguous_format,
    }
    ((_, (none, index), value), _) = calls["aten::index_put_.default"][0]
    assert (none, index.tolist(), value.item()) == (None, [1], 5.0)
    ((size,), options) = calls["aten::zeros.default"][0]
    assert (list(size), options["device"], options["dtype"]) == ([4], torch.device("cpu"), torch.int32)


def test_what_a_call_writes_is_kept_as_it_was_before(record: Record):
    x, out = torch.zeros(3), torch.full((3,), 7.0)
    calls = record("add_.Tensor cumsum.out", lambda: (x.add_(1), torch.cumsum(x, 0, out=out)))
    assert calls["aten::add_.Tensor"][0][0][0].tolist() == [0, 0, 0]
    args, options = calls["aten::cumsum.out"][0]
    assert options["out"].tolist() == [7, 7, 7]
    assert overload_of("aten::cumsum.out")(*args, **options).tolist() == [1, 2, 3]


def test_what_pytorchs_kernels_call_in_turn_is_seen_and_computes_the_same(record: Record):
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    results: list[Tensor] = []
    calls = record("addmm zero_", lambda: results.extend((layer(x), torch.zeros(2, device="cpu"))))
    assert set(calls) == {"aten::addmm.default", "aten::zero_.default"}
    with torch.inference_mode():
        assert torch.equal(results[0], layer(x))


def test_the_first_call_of_each_kind_is_kept_and_not_too_many(record: Record):
    def run() -> None:
        for rows in [*range(1, 40), *range(1, 40)]:
            torch.ones(rows, 2).sum(0)
        torch.ones(2, 2, dtype=torch.float64).neg().neg()

    calls = record("sum.dim_IntList neg", run)
    assert len(calls["aten::sum.dim_IntList"]) == 24
    assert len(calls["aten::neg.default"]) == 1


def test_calls_inside_of_a_kernel_of_layer_2_are_its_own(record: Record):
    x = torch.ones(3)
    calls = record("neg abs", lambda: (marked(torch.neg)(x), x.abs()))
    assert set(calls) == {"aten::abs.default"}


def test_tensors_of_other_devices_are_of_no_account(record: Record):
    x = torch.ones(3, device="meta")
    assert record("neg zeros", lambda: (x.neg(), torch.zeros(2, device="meta"))) == {}


def test_a_call_that_is_too_large_is_not_kept_and_the_files_are_their_owners_alone(
    record: Record, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    calls = record("neg abs", lambda: (torch.ones(1024).neg(), torch.ones(8).abs()), room=4096)
    assert set(calls) == {"aten::abs.default"}
    assert "calls of neg.default with 0 MiB are not kept: too large" in caplog.text
    for path in (*kept_files(tmp_path / "calls"), *(tmp_path / "calls").iterdir()):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077


def test_a_disk_that_is_full_ends_no_call(record: Record, monkeypatch, caplog: pytest.LogCaptureFixture):
    def save(content: object, file: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", save)
    results: list[Tensor] = []
    assert record("neg abs", lambda: results.extend((torch.ones(2).neg(), torch.ones(2).abs()))) == {}
    assert [result.tolist() for result in results] == [[-1, -1], [1, 1]]
    assert caplog.text.count("no further calls are kept: OSError: [Errno 28] No space left on device") == 1


def test_what_is_no_plain_tensor_is_computed_and_not_kept(record: Record):
    found: list[Tensor] = []
    assert (
        record("mul.Tensor", lambda: found.append(torch.eye(2).to_sparse() * torch.eye(2).to_sparse())) == {}
    )
    assert found[0].to_dense().tolist() == [[1, 0], [0, 1]]


def test_batches_of_the_scheduler_are_watched(tmp_path: Path):
    class Scheduler:
        def run_batch(self, x: Tensor, *, times: int) -> Tensor:
            return x * times

    mode = CallMode([AtenOp("mul.Tensor", "mul")], "cpu", CallFolder(tmp_path))
    scheduler = Scheduler()
    watch_batches(mode)(scheduler)
    assert scheduler.run_batch(torch.ones(2), times=3).tolist() == [3, 3]
    assert len(kept_files(tmp_path)) == 1
