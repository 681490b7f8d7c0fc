// A chip tensor as a CPU tensor over the same bytes, and a CPU tensor as a chip tensor.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/DeviceGuard.h>

#include "memory.h"

namespace simulated {

inline bool is_on_chip(const at::Tensor& tensor) {
  return tensor.defined() && tensor.is_privateuseone();
}

inline void keep_bits(const at::Tensor& from, at::Tensor& to) {
  to._set_conj(from.is_conj());
  to._set_neg(from.is_neg());
}

// The storage's bytes as a CPU storage that keeps them alive.
inline c10::Storage host_storage(const c10::Storage& storage) {
  auto* owner = new c10::Storage(storage);
  c10::DataPtr bytes(
      storage.mutable_data(), owner, [](void* context) { delete static_cast<c10::Storage*>(context); },
      c10::Device(c10::DeviceType::CPU));
  return {c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(bytes), c10::GetCPUAllocator(), true};
}

inline at::Tensor over(
    c10::Storage storage, c10::DispatchKey key, const at::Tensor& like) {
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  keep_bits(like, tensor);
  return tensor;
}

// A view of a chip tensor. It has its base's keys, so that a view of a normal tensor is a normal one under
// inference mode too.
inline at::Tensor chip_view(const at::Tensor& base, const at::Tensor& like) {
  auto view = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(base.storage()), base.key_set(), like.dtype());
  view.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  keep_bits(like, view);
  return view;
}

inline at::Tensor host_alias(const at::Tensor& tensor) {
  if (!is_on_chip(tensor)) return tensor;
  return over(host_storage(tensor.storage()), c10::DispatchKey::CPU, tensor);
}

inline at::Tensor empty_strided_on(
    c10::Device device, at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType dtype) {
  const c10::DeviceGuard guard(device);
  return at::detail::empty_strided_generic(
      sizes, strides, &device_allocator(), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), dtype);
}

// A new chip tensor with a CPU tensor's values and strides.
inline at::Tensor chip_copy(const at::Tensor& host, c10::Device device) {
  auto copy = empty_strided_on(device, host.sizes(), host.strides(), host.scalar_type());
  host_alias(copy).copy_(host);
  return copy;
}

}  // namespace simulated
