// Every ATen op that has no kernel of its own here runs its CPU kernel on aliases of the same bytes, so that
// views and in-place writes keep their meaning. What a real chip would refuse is refused: tensors on several
// devices, and ops of other namespaces that were never registered for this chip.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <optional>
#include <vector>

#include "alias.h"
#include "guard.h"
#include "record.h"

namespace simulated {

class Call {
 public:
  Call(const c10::OperatorHandle& op, torch::jit::Stack* stack)
      : op_(op), stack_(stack), first_(stack->size() - op.schema().arguments().size()) {}

  void run() {
    record().note(c10::toString(op_.operator_name()));
    look_at_arguments();
    refuse();
    for (size_t i = first_; i < stack_->size(); ++i) (*stack_)[i] = to_host((*stack_)[i]);
    op_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack_);
    for (auto& pair : pairs_) take_over_form(pair);
    for (size_t i = stack_->size() - op_.schema().returns().size(); i < stack_->size(); ++i)
      (*stack_)[i] = to_chip((*stack_)[i]);
  }

 private:
  struct Pair {
    at::Tensor chip, host;
  };

  std::string where() const {
    return c10::str("simulated ", chip().name, ": ", op_.operator_name());
  }

  // ---- what was passed

  void look_at_arguments() {
    for (size_t i = first_; i < stack_->size(); ++i) {
      const auto& value = (*stack_)[i];
      if (value.isTensor()) {
        look_at(value.toTensor());
      } else if (value.isTensorList()) {
        for (const at::Tensor& tensor : value.toTensorList()) look_at(tensor);
      } else if (value.isOptionalTensorList()) {
        // Indices: every accelerator takes those from the host, too.
        for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorList())
          if (tensor && is_on_chip(*tensor)) look_at(*tensor);
      } else if (value.isDevice() && value.toDevice().type() == kChip && !device_) {
        device_ = with_index(value.toDevice());
      }
    }
  }

  void look_at(const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    if (is_on_chip(tensor)) {
      const bool is_first = !has_chip_tensor_;
      is_on_several_ |= !is_first && tensor.dim() > 0 && tensor.device() != *device_;
      if (is_first || tensor.dim() > 0) device_ = tensor.device();
      has_chip_tensor_ = true;
    } else if (tensor.dim() > 0) {
      has_host_tensor_ = true;
    }
  }

  void refuse() const {
    const auto& space = op_.operator_name().getNamespace();
    TORCH_CHECK_NOT_IMPLEMENTED(
        space && (*space == "aten" || *space == "prim"), where(), " has no kernel for this chip. A kernel for the CPU ",
        "does not stand in for it; register one for PrivateUse1.");
    TORCH_CHECK_NOT_IMPLEMENTED(
        op_.hasComputedKernelForDispatchKey(c10::DispatchKey::CPU), where(),
        " has no kernel for the CPU that could stand in; register one for PrivateUse1.");
    TORCH_CHECK(
        !(device_ && has_host_tensor_), where(), " got tensors on ", device_ ? device_->str() : "", " and on the CPU. ",
        "Expected all tensors to be on the same device.");
    TORCH_CHECK(!is_on_several_, where(), " got tensors on several devices of the chip.");
  }

  // ---- to the host

  at::Tensor to_host(const at::Tensor& tensor) {
    if (!is_on_chip(tensor)) return tensor;
    for (const auto& pair : pairs_)
      if (pair.chip.is_same(tensor)) return pair.host;
    Pair pair{tensor, {}};
    for (const auto& other : pairs_)
      if (other.chip.storage().is_alias_of(tensor.storage()))  // they share bytes there, so they must here
        pair.host = over(other.host.storage(), c10::DispatchKey::CPU, tensor);
    if (!pair.host.defined()) pair.host = host_alias(tensor);
    pairs_.push_back(pair);
    return pair.host;
  }

  c10::IValue to_host(const c10::IValue& value) {
    if (value.isTensor()) return to_host(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> hosts;
      for (const at::Tensor& tensor : value.toTensorList()) hosts.push_back(to_host(tensor));
      return hosts;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> hosts;
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorList())
        hosts.push_back(tensor ? std::optional<at::Tensor>(to_host(*tensor)) : std::nullopt);
      return hosts;
    }
    if (value.isDevice() && value.toDevice().type() == kChip) return c10::Device(c10::DeviceType::CPU);
    return value;
  }

  // ---- and back

  // An argument that the kernel has given another shape (out=, squeeze_) or other bytes (resize_).
  static void take_over_form(const Pair& pair) {
    auto* to = pair.chip.unsafeGetTensorImpl();
    const auto& host = pair.host;
    if (host.storage().data() != pair.chip.storage().data()) {
      const c10::DeviceGuard guard(pair.chip.device());
      Hooks().resizePrivateUse1Bytes(pair.chip.storage(), host.storage().nbytes());
      std::memcpy(pair.chip.storage().mutable_data(), host.storage().data(), host.storage().nbytes());
    }
    const bool is_same_form = host.sizes() == pair.chip.sizes() && host.strides() == pair.chip.strides() &&
        host.storage_offset() == pair.chip.storage_offset();
    if (!is_same_form) to->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
  }

  at::Tensor to_chip(const at::Tensor& result) const {
    if (!result.defined() || !result.is_cpu() || !device_) return result;
    for (const auto& pair : pairs_)
      if (pair.host.is_same(result)) return pair.chip;
    for (const auto& pair : pairs_)
      if (result.has_storage() && pair.host.storage().is_alias_of(result.storage()))
        return chip_view(pair.chip, result);
    return chip_copy(result, *device_);
  }

  c10::IValue to_chip(const c10::IValue& value) const {
    if (value.isTensor()) return to_chip(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<at::Tensor> chips;
    for (const at::Tensor& tensor : value.toTensorList()) chips.push_back(to_chip(tensor));
    return chips;
  }

  const c10::OperatorHandle& op_;
  torch::jit::Stack* stack_;
  size_t first_;
  std::optional<c10::Device> device_;
  bool has_chip_tensor_ = false;
  bool has_host_tensor_ = false;
  bool is_on_several_ = false;
  std::vector<Pair> pairs_;
};

inline void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Call(op, stack).run();
}

}  // namespace simulated
