// A stack of its own that runs until it gives control back: one thread of a block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace host_gpu {

#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kStackBytes = 512 << 10;
#else
constexpr std::size_t kStackBytes = 64 << 10;
#endif

#if defined(__x86_64__)
// Registers that a call must keep go on the old stack, then come from the new one. swapcontext
// would ask the kernel for the signal mask each time, a hundred times slower.
extern "C" void host_gpu_switch(void** from, void* to);
#endif

class Fiber {
 public:
  Fiber() : stack_(new std::byte[kStackBytes]) {}
  bool owns(const void* at) const {
    return std::size_t(static_cast<const std::byte*>(at) - stack_.get()) < kStackBytes;
  }

  // The next resume() starts `entry`, which must never return: its last act is pause().
  void reset(void (*entry)()) {
#if defined(__x86_64__)
    auto top = reinterpret_cast<std::uintptr_t>(stack_.get() + kStackBytes) / 16 * 16;
    auto* at = reinterpret_cast<void**>(top);
    *--at = nullptr;  // where a return address would lie: keeps the alignment of a call
    *--at = reinterpret_cast<void*>(entry);
    for (int r = 0; r < 6; ++r) *--at = nullptr;
    here_ = at;
#else
    getcontext(&here_);
    here_.uc_stack.ss_sp = stack_.get();
    here_.uc_stack.ss_size = kStackBytes;
    here_.uc_link = nullptr;
    makecontext(&here_, entry, 0);
#endif
  }
  void resume() {
#if defined(__SANITIZE_ADDRESS__)
    void* mine = nullptr;
    __sanitizer_start_switch_fiber(&mine, stack_.get(), kStackBytes);
#endif
#if defined(__x86_64__)
    host_gpu_switch(&caller_, here_);
#else
    swapcontext(&caller_, &here_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(mine, nullptr, nullptr);
#endif
  }
  // Called on the fiber itself.
  void pause() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_, caller_stack_, caller_bytes_);
#endif
#if defined(__x86_64__)
    host_gpu_switch(&here_, caller_);
#else
    swapcontext(&here_, &caller_);
#endif
    arrived();
  }
  // First thing on a fiber's stack after each switch to it.
  void arrived() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_, &caller_stack_, &caller_bytes_);
#endif
  }

 private:
  std::unique_ptr<std::byte[]> stack_;
#if defined(__x86_64__)
  void *here_ = nullptr, *caller_ = nullptr;
#else
  ucontext_t here_, caller_;
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake_ = nullptr;
  const void* caller_stack_ = nullptr;
  std::size_t caller_bytes_ = 0;
#endif
};

}  // namespace host_gpu
