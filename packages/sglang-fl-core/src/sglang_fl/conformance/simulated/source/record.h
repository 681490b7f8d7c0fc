// What the chip was asked for: each name once in a process, appended to a file that processes share.
#pragma once

#include <unistd.h>

#include <atomic>

#include <mutex>
#include <string>
#include <unordered_set>

namespace simulated {

class Record {
 public:
  // Write to this file descriptor from now on; a negative one ends the record.
  void begin(int descriptor) {
    std::lock_guard<std::mutex> lock(mutex_);
    descriptor_ = descriptor;
    seen_.clear();
  }

  void note(const std::string& name) {
    if (descriptor_ < 0) return;
    std::lock_guard<std::mutex> lock(mutex_);
    if (!seen_.insert(name).second) return;
    const std::string line = name + "\n";
    // One write for a line, so that lines of several ranks do not mix. A full disk is no reason to stop.
    if (::write(descriptor_, line.data(), line.size()) < 0) descriptor_ = -1;
  }

 private:
  std::atomic<int> descriptor_{-1};
  std::mutex mutex_;
  std::unordered_set<std::string> seen_;
};

inline Record& record() {
  static Record instance;
  return instance;
}

}  // namespace simulated
