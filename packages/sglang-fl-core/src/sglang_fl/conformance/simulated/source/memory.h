// The chip's memory, which is the host's: device blocks counted against a limit, and pinned blocks.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <unordered_set>

namespace simulated {

constexpr auto kChip = c10::DeviceType::PrivateUse1;
constexpr int kMostDevices = 16;
constexpr size_t kAlignment = 512;

struct Chip {
  std::string name = "chip";
  int devices = 1;
  int64_t capacity = int64_t{4} << 30;  // bytes of each device
  std::atomic<int64_t> used[kMostDevices] = {};
  std::atomic<int64_t> peak[kMostDevices] = {};
};

inline Chip& chip() {
  static Chip instance;
  return instance;
}

inline thread_local c10::DeviceIndex current_device = 0;

inline void* aligned_bytes(size_t size) {
  void* bytes = nullptr;
  TORCH_CHECK(posix_memalign(&bytes, kAlignment, size) == 0, "the host has no ", size, " bytes left");
  return bytes;
}

struct Block {
  void* bytes;
  size_t size;
  c10::DeviceIndex device;
};

inline void release_block(void* context) {
  auto* block = static_cast<Block*>(context);
  chip().used[block->device] -= static_cast<int64_t>(block->size);
  std::free(block->bytes);
  delete block;
}

class DeviceAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    const auto device = current_device;
    const c10::Device where(kChip, device);
    if (size == 0) return {nullptr, where};
    const int64_t now = chip().used[device] += static_cast<int64_t>(size);
    if (now > chip().capacity) {
      chip().used[device] -= static_cast<int64_t>(size);
      TORCH_CHECK_WITH(
          OutOfMemoryError, false, "simulated ", chip().name, ":", static_cast<int>(device), " is out of memory: ",
          size, " bytes asked for, ", now - static_cast<int64_t>(size), " of ", chip().capacity, " in use");
    }
    int64_t peak = chip().peak[device];
    while (now > peak && !chip().peak[device].compare_exchange_weak(peak, now)) {
    }
    void* bytes = aligned_bytes(size);
    return {bytes, new Block{bytes, size, device}, &release_block, where};
  }

  c10::DeleterFnPtr raw_deleter() const override {
    return nullptr;  // a block cannot be freed by its address alone
  }

  void copy_data(void* to, const void* from, size_t size) const override {
    std::memcpy(to, from, size);
  }
};

// Pinned memory is the host's too; the addresses are kept, because a tensor can be asked whether it is pinned.
class PinnedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    void* bytes = aligned_bytes(size ? size : kAlignment);
    std::lock_guard<std::mutex> lock(mutex());
    pinned().insert(bytes);
    return {bytes, bytes, &release, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override {
    return &release;
  }

  void copy_data(void* to, const void* from, size_t size) const override {
    std::memcpy(to, from, size);
  }

  static bool owns(const void* bytes) {
    std::lock_guard<std::mutex> lock(mutex());
    return pinned().count(bytes) > 0;
  }

 private:
  static void release(void* bytes) {
    {
      std::lock_guard<std::mutex> lock(mutex());
      pinned().erase(bytes);
    }
    std::free(bytes);
  }

  // Never destroyed: tensors may outlive static objects.
  static std::mutex& mutex() {
    static auto* instance = new std::mutex;
    return *instance;
  }

  static std::unordered_set<const void*>& pinned() {
    static auto* instance = new std::unordered_set<const void*>;
    return *instance;
  }
};

inline DeviceAllocator& device_allocator() {
  static auto* instance = new DeviceAllocator;
  return *instance;
}

inline PinnedAllocator& pinned_allocator() {
  static auto* instance = new PinnedAllocator;
  return *instance;
}

}  // namespace simulated
