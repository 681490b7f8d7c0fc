// A PyTorch device over host memory: what the dispatcher is told, and what Python may ask.
#include <ATen/ops/set_native.h>
#include <torch/library.h>

#include "alias.h"
#include "fallback.h"
#include "guard.h"
#include "memory.h"
#include "record.h"

namespace simulated {
namespace {

struct Registration {
  Registration() {
    c10::SetAllocator(kChip, &device_allocator());
    at::RegisterPrivateUse1HooksInterface(new Hooks);
  }
};
const Registration registration;

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// ---- kernels that no CPU kernel can stand in for

c10::Device device_or_current(std::optional<c10::Device> device) {
  return with_index(device.value_or(c10::Device(kChip)));
}

at::Tensor empty(
    at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<c10::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  record().note("aten::empty.memory_format");
  const c10::DeviceGuard guard(device_or_current(device));
  return at::detail::empty_generic(
      size, &device_allocator(), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype),
      format);
}

at::Tensor empty_strided(
    at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<c10::Device> device, std::optional<bool>) {
  record().note("aten::empty_strided");
  return empty_strided_on(device_or_current(device), size, stride, c10::dtype_or_default(dtype));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  record().note("aten::_copy_from");
  host_alias(to).copy_(host_alias(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  record().note("aten::_copy_from_and_resize");
  to.resize_(from.sizes());
  host_alias(to).copy_(host_alias(from));
  return to;
}

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  return at::native::set_tensor_(self, source);
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source) {
  return at::native::set_(self, std::move(source));
}

at::Tensor& set_part_of_storage(
    at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  return at::native::set_storage_cpu_(self, std::move(source), offset, size, stride);
}

void record_stream(at::Tensor& self, c10::Stream stream) {
  record().note("aten::record_stream");
  TORCH_CHECK(
      stream.device_type() == self.device().type(), "simulated ", chip().name, ": record_stream got a stream of ",
      stream.device(), " for a tensor on ", self.device());
}

// ---- for emulated kernels, which compute on the host

at::Tensor chip_copy_to(const at::Tensor& host, int64_t device) {
  TORCH_CHECK(host.is_cpu(), "the tensor is on ", host.device(), ", not on the CPU");
  return chip_copy(host, {kChip, static_cast<c10::DeviceIndex>(device)});
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("set_.source_Tensor", &set_tensor);
  library.impl("set_.source_Storage", &set_storage);
  library.impl("set_.source_Storage_storage_offset", &set_part_of_storage);
  library.impl("record_stream", &record_stream);
}

// A copy resolves these bits itself; without this PyTorch's own fallback would call the copy again, for ever.
TORCH_LIBRARY_IMPL(aten, Conjugate, library) {
  library.impl("_copy_from", torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(aten, Negative, library) {
  library.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY(sglang_fl_simulated, library) {
  library.def("host_alias(Tensor tensor) -> Tensor", torch::dispatch(c10::DispatchKey::PrivateUse1, &host_alias));
  library.def("chip_copy(Tensor host, int device) -> Tensor", torch::dispatch(c10::DispatchKey::CPU, &chip_copy_to));
}

}  // namespace simulated

// ---- for Python, by ctypes: no part of this depends on Python's own headers

extern "C" {

void simulated_configure(const char* name, int devices, int64_t capacity) {
  simulated::chip().name = name;
  simulated::chip().devices = devices < simulated::kMostDevices ? devices : simulated::kMostDevices;
  simulated::chip().capacity = capacity;
}

int simulated_devices() {
  return simulated::chip().devices;
}

int64_t simulated_capacity() {
  return simulated::chip().capacity;
}

int64_t simulated_used(int device) {
  return simulated::chip().used[device];
}

int64_t simulated_peak(int device) {
  return simulated::chip().peak[device];
}

void simulated_reset_peak(int device) {
  simulated::chip().peak[device] = simulated::chip().used[device].load();
}

void simulated_record(int descriptor) {
  simulated::record().begin(descriptor);
}

void simulated_note(const char* name) {
  simulated::record().note(name);
}
}
