"""The simulated chip as a PyTorch device: what must work on any accelerator, and what must be refused."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F

from sglang_fl.conformance.simulated import SimulatedChip

CHIP = SimulatedChip(
    "toychip",
    "toyccl",
    stand_ins={"toy_driver": None},
    importable=("toy_kernels",),
    devices=2,
    memory=1 << 30,
)
DEVICE = CHIP.device_type

pytestmark = pytest.mark.on_chip(CHIP)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def on_chip(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_arithmetic_is_the_cpus(dtype):
    x, w = randn(5, 8, dtype=dtype), randn(7, 8, dtype=dtype)
    for compute in (
        lambda x, w: F.linear(x, w),
        lambda x, w: torch.softmax(x.float(), -1) @ w.t().float(),
        lambda x, w: F.silu(x).sum(0, keepdim=True) - w.amax(),
        lambda x, w: torch.cat((x, w)).sort(dim=0).values,
        lambda x, w: torch.where(x > 0, x, 0).cumsum(-1),
    ):
        result = compute(on_chip(x), on_chip(w))
        assert result.device == torch.device(DEVICE, 0)
        assert torch.equal(result.cpu(), compute(x, w))


def test_attention_is_near_the_cpus_which_has_a_kernel_of_its_own():
    x, w = randn(1, 4, 5, 8), randn(1, 2, 7, 8)
    attended = F.scaled_dot_product_attention(on_chip(x), on_chip(w), on_chip(w), enable_gqa=True)
    expected = F.scaled_dot_product_attention(x, w, w, enable_gqa=True)
    torch.testing.assert_close(attended.cpu(), expected)


def test_views_share_their_bytes():
    x = on_chip(torch.zeros(6, 4))
    x[2:4].add_(1)
    x.t()[0].mul_(3)
    x.view(3, 8).chunk(2, dim=-1)[1].sub_(5)
    expected = torch.zeros(6, 4)
    expected[2:4].add_(1)
    expected.t()[0].mul_(3)
    expected.view(3, 8).chunk(2, dim=-1)[1].sub_(5)
    assert torch.equal(x.cpu(), expected)
    assert x.t()._base is x


#: Ways to look at a matrix.
VIEWS = (lambda x: x.view(24), lambda x: x.t(), lambda x: x[1:], lambda x: x.as_strided((2,), (1,)))


def are_inference_tensors(device: str) -> list[bool]:
    """Tell it of views of a normal tensor and of one made under inference mode."""
    normal = randn(4, 6).to(device)
    with torch.inference_mode():
        views = [view(x) for x in (normal, randn(4, 6).to(device)) for view in VIEWS]
    return [view.is_inference() for view in views]


def test_views_under_inference_mode_are_what_their_base_is():
    assert are_inference_tensors(DEVICE) == are_inference_tensors("cpu")
    normal = on_chip(randn(4, 6))
    with torch.inference_mode():
        normal.view(24)[:6].zero_()
    assert float(normal[0].abs().sum()) == 0


def test_a_strided_tensor_keeps_its_strides():
    x = on_chip(randn(4, 6)).t()
    assert torch.empty_like(x).stride() == (1, 6)
    assert x.contiguous().stride() == (4, 1)
    assert torch.equal(x.to("cpu"), randn(4, 6).t())


def test_indices_may_lie_on_the_host():
    x, rows = on_chip(torch.zeros(5, 2)), torch.tensor([4, 0])
    x[rows] = 1
    x[on_chip(rows), 0] = 2
    assert x.cpu().tolist() == [[2, 1], [0, 0], [0, 0], [0, 0], [2, 1]]
    assert torch.equal(x[rows].cpu(), x.cpu()[rows])


def test_results_given_by_the_caller_are_filled_and_resized():
    x, out = on_chip(randn(3, 4)), torch.empty(0, device=DEVICE)
    assert torch.add(x, 1, out=out) is out
    assert torch.equal(out.cpu(), randn(3, 4) + 1)
    out.resize_(100, 5).zero_()
    assert (out.shape, float(out.sum())) == ((100, 5), 0.0)
    out.squeeze_().unsqueeze_(0).transpose_(0, 1)
    assert out.shape == (100, 1, 5)


def test_two_arguments_over_one_storage_see_each_others_writes():
    x = on_chip(torch.arange(4.0))
    torch._foreach_add_([x[:2], x[1:3]], 1.0)
    assert x.cpu().tolist() == [1, 3, 3, 3]


def test_complex_numbers_and_their_conjugates():
    x = on_chip(randn(3, 2))
    product = torch.view_as_complex(x) * torch.view_as_complex(x).conj()
    assert torch.allclose(product.real.cpu(), randn(3, 2).square().sum(-1))
    assert torch.view_as_complex(x).conj().cpu().resolve_conj().is_conj() is False


def test_gradients_flow():
    layer, twin = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    twin.load_state_dict(layer.state_dict())
    twin.to(DEVICE)
    layer(randn(2, 4)).square().sum().backward()
    twin(on_chip(randn(2, 4))).square().sum().backward()
    assert twin.weight.grad.device.type == DEVICE
    assert torch.equal(twin.weight.grad.cpu(), layer.weight.grad)


def test_tensors_are_saved_and_loaded():
    file = io.BytesIO()
    torch.save(on_chip(randn(3)), file)
    for where, device_type in ((None, DEVICE), ("cpu", "cpu")):
        file.seek(0)
        loaded = torch.load(file, map_location=where)
        assert loaded.device.type == device_type
        assert torch.equal(loaded.cpu(), randn(3))
    assert copy.deepcopy(on_chip(randn(3))).device.type == DEVICE


def test_eager_compilation_runs():
    compiled = torch.compile(lambda x: F.silu(x) * 2, backend="eager")
    assert torch.equal(compiled(on_chip(randn(3))).cpu(), F.silu(randn(3)) * 2)


# What a chip refuses


#: Calls with a tensor on the chip and one on the host.
MIXED = {
    "add": lambda here, there: here + there,
    "matmul": lambda here, there: here @ there,
    "cat": lambda here, there: torch.cat((here, there)),
    "layer_norm": lambda here, there: F.layer_norm(here, (3,), there[0]),
    "index_select": lambda here, there: here.index_select(0, torch.tensor([0])),
    "embedding": lambda here, there: F.embedding(torch.tensor([0]), here),
    "index_put_": lambda here, there: there.index_put_((here[0].long(),), there[:1]),
    "where": lambda here, there: torch.where(here > 0, here, there),
}


@pytest.mark.parametrize("name", MIXED)
def test_a_cpu_tensor_among_the_chips_is_refused(name):
    with pytest.raises(RuntimeError, match=r"on the same device|got tensors on toychip:0 and on the CPU"):
        MIXED[name](on_chip(randn(3, 3)), randn(3, 3))


def test_tensors_of_two_devices_are_refused():
    with pytest.raises(RuntimeError, match=r"same device|several devices"):
        torch.mm(randn(3, 3).to(f"{DEVICE}:0"), randn(3, 3).to(f"{DEVICE}:1"))


def test_a_scalar_may_come_from_the_host():
    assert float((on_chip(torch.ones(2)) * torch.tensor(3.0)).sum()) == 6


def test_numpy_cannot_look_at_the_chip():
    with pytest.raises(TypeError, match="can't convert toychip:0 device type tensor to numpy"):
        on_chip(randn(3)).numpy()


def test_an_op_of_another_namespace_needs_a_kernel_of_its_own():
    with torch.library._scoped_library("toy_foreign", "DEF") as library:
        library.define("plus_one(Tensor x) -> Tensor")
        library.impl("plus_one", lambda x: x + 1, "CPU")
        assert float(torch.ops.toy_foreign.plus_one(torch.zeros(()))) == 1
        message = "simulated toychip: toy_foreign::plus_one has no kernel for this chip"
        with pytest.raises(NotImplementedError, match=message):
            torch.ops.toy_foreign.plus_one(on_chip(torch.zeros(1)))
        library.impl("plus_one", lambda x: x + 1, "PrivateUse1")
        assert float(torch.ops.toy_foreign.plus_one(on_chip(torch.zeros(1)))) == 1


def test_more_memory_than_there_is_is_refused():
    with pytest.raises(
        torch.OutOfMemoryError, match=r"simulated toychip:0 is out of memory: 2147483648 bytes"
    ):
        torch.empty(1 << 31, dtype=torch.uint8, device=DEVICE)


# ATen kernels of the chip's own


@pytest.mark.parametrize("overload", ["silu", "mm", "mul.Tensor", "rms_norm"])
def test_a_registered_aten_kernel_runs_until_it_is_taken_back(overload):
    calls = {
        "silu": lambda x: F.silu(x),
        "mm": lambda x: x @ x,
        "mul.Tensor": lambda x: x * x,
        "rms_norm": lambda x: F.rms_norm(x, (3,)),
    }
    call, x = calls[overload], on_chip(randn(3, 3))
    called = []

    def kernel(*arguments: object, **options: object):
        called.append(overload)
        return torch.zeros_like(x)

    before = call(x)
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl(overload, kernel, "PrivateUse1")
        assert float(call(x).abs().sum()) == 0
        with torch.inference_mode():
            assert float(call(x).abs().sum()) == 0
        assert torch.equal(call(x.cpu()), before.cpu())
    assert called == [overload] * 2
    assert torch.equal(call(x).cpu(), before.cpu())
    assert called == [overload] * 2


# Streams, generators, memory


def test_streams_and_events():
    toychip = torch.toychip
    begin, end, stream = (
        toychip.Event(enable_timing=True),
        toychip.Event(enable_timing=True),
        toychip.Stream(),
    )
    begin.record()
    with toychip.stream(stream):
        assert toychip.current_stream() == stream
        end.record()
    assert toychip.current_stream() == toychip.default_stream() != stream
    stream.wait_event(end)
    stream.wait_stream(toychip.current_stream())
    stream.synchronize()
    assert end.query()
    assert begin.elapsed_time(end) >= 0
    x = on_chip(randn(3))
    x.record_stream(stream)
    torch.accelerator.synchronize()


def test_the_current_device_is_the_threads():
    toychip = torch.toychip
    assert toychip.device_count() == torch.accelerator.device_count() == 2
    with toychip.device(1):
        assert torch.empty(1, device=DEVICE).device.index == toychip.current_device() == 1
    assert torch.empty(1, device=DEVICE).device.index == 0
    with pytest.raises(RuntimeError, match="simulated toychip has 2 devices, there is no number 2"):
        torch.empty(1, device=f"{DEVICE}:2")


def test_random_numbers_repeat_with_their_seed():
    torch.manual_seed(7)
    first = torch.rand(5, device=DEVICE).cpu()
    torch.manual_seed(7)
    assert torch.equal(torch.rand(5, device=DEVICE).cpu(), first)
    generator = torch.Generator(device=DEVICE).manual_seed(7)
    assert torch.equal(torch.rand(5, device=DEVICE, generator=generator).cpu(), first)
    state = torch.toychip.get_rng_state()
    drawn = torch.empty(4, device=DEVICE).exponential_().cpu()
    torch.toychip.set_rng_state(state)
    assert torch.equal(torch.empty(4, device=DEVICE).exponential_().cpu(), drawn)


def test_memory_is_counted():
    toychip = torch.toychip
    used, (free, total) = toychip.memory_allocated(), toychip.mem_get_info()
    toychip.reset_peak_memory_stats()
    x = torch.empty(1000, dtype=torch.uint8, device=DEVICE)
    assert toychip.memory_allocated() == used + 1000
    assert toychip.mem_get_info() == (free - 1000, total) == (free - 1000, 1 << 30)
    del x
    assert toychip.memory_allocated() == used
    assert toychip.max_memory_allocated() == used + 1000


def test_pinned_memory_knows_that_it_is_pinned():
    x = randn(3).pin_memory()
    assert x.is_pinned()
    assert not randn(3).is_pinned()
    assert torch.equal(x.to(DEVICE, non_blocking=True).cpu(), randn(3))


def test_what_the_module_has_not_it_says():
    with pytest.raises(
        AttributeError, match=r"module 'torch.toychip' has no attribute 'Graph'.*does not know it"
    ):
        _ = torch.toychip.Graph


def test_an_empty_stand_in_has_the_chips_module_and_nothing_else():
    import toy_driver

    assert toy_driver.toychip is torch.toychip
    with pytest.raises(AttributeError, match=r"toy_driver.rms_norm: the stand-in of toy_driver"):
        _ = toy_driver.rms_norm


def test_an_importable_package_has_every_name_and_refuses_every_call():
    import toy_kernels.norm.fused
    from toy_kernels.norm.fused import rms_norm

    assert toy_kernels.toychip is torch.toychip
    assert toy_kernels.norm.fused.anything.more is not None
    with pytest.raises(
        NotImplementedError, match=r"toy_kernels.norm.fused.rms_norm is not there on a simulated"
    ):
        rms_norm(1, eps=2)
