#include "global_memory.h"

#include <dlfcn.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <unordered_map>

#include "machine.h"

namespace host_gpu {

namespace {

struct Access {
  const void* from = nullptr;
  std::uint32_t grid_epoch = 0, block_epoch = 0;
  std::int64_t block = -1;
  int thread = -1;
  bool many_blocks = false, many_threads = false;  // of this epoch
};

// Two bytes: no type of a kernel's is smaller.
struct GlobalCell {
  Access write, read;
  bool alike = false;  // the write, with all others
};

constexpr std::uintptr_t kPageBytes = 4096, kCellBytes = 2;
using Page = std::array<GlobalCell, kPageBytes / kCellBytes>;

std::unordered_map<std::uintptr_t, std::unique_ptr<Page>> pages;
struct Recent {
  std::uintptr_t number = 0;
  Page* page = nullptr;
};
std::array<Recent, 256> recents;  // pages found last, so that most are found at once
bool instrumented = false;        // the kernels are: else nothing is known of their writes
const void *first_place = nullptr, *second_place = nullptr;

GlobalCell& cell_of(std::uintptr_t at) {
  const std::uintptr_t number = at / kPageBytes;
  Recent& recent = recents[number % recents.size()];
  if (number != recent.number || !recent.page) {
    std::unique_ptr<Page>& page = pages[number];
    if (!page) page = std::make_unique<Page>();
    recent = {number, page.get()};
  }
  return (*recent.page)[at % kPageBytes / kCellBytes];
}

// Whether the running thread's access to `at` is one to global memory.
bool is_global(const void* at) {
  if (!running || running->executes_warp || running->fiber.owns(at)) return false;
  if (running->block->owns(at)) fail("an access to shared memory past load_shared or store_shared");
  return true;
}

Access now(const void* from) {
  return {from,
          grid_epoch(),
          running->block->barrier.generation,
          running->blockIdx.x,
          int(running->threadIdx.x),
          false,
          false};
}

// Of several accesses that may be at the same time, what orders them all before a later one.
void join(Access& known, const Access& mine) {
  if (known.grid_epoch != mine.grid_epoch)
    known = mine;
  else if (known.many_blocks || known.block != mine.block)
    known.many_blocks = true;
  else if (known.block_epoch != mine.block_epoch)  // earlier ones lie behind a barrier
    known = mine;
  else if (known.thread != mine.thread)
    known.many_threads = true;
}

// Ends the launch if nothing orders `before` and what the running thread does.
void check(const Access& before, const Access& after, const void* at, const char* what) {
  if (before.grid_epoch != after.grid_epoch) return;
  const bool other_block = before.many_blocks || before.block != after.block;
  const bool other_thread = before.block_epoch == after.block_epoch &&
                            (before.many_threads || before.thread != after.thread);
  if (!other_block && !other_thread) return;
  first_place = before.from;
  second_place = after.from;
  char address[32];
  std::snprintf(address, sizeof(address), "%p", at);
  std::string who = "several blocks";
  if (!before.many_blocks) who = "block " + std::to_string(before.block);
  if (!before.many_blocks && !before.many_threads)
    who += ", thread " + std::to_string(before.thread);
  fail(std::string(what) + " " + who + ", of global memory at " + address + ", with no barrier " +
       (other_block ? "of the grid" : "of the block") + " between");
}

void write(const void* at, std::size_t bytes, const void* from, bool alike) {
  if (!is_global(at)) return;
  const Access mine = now(from);
  const auto begin = reinterpret_cast<std::uintptr_t>(at);
  for (std::uintptr_t k = begin / kCellBytes * kCellBytes; k < begin + bytes; k += kCellBytes) {
    GlobalCell& cell = cell_of(k);
    if (!alike || !cell.alike) check(cell.write, mine, at, "a write over what was written by");
    check(cell.read, mine, at, "a write over what was read by");
    if (alike && cell.alike)
      join(cell.write, mine);
    else
      cell.write = mine;
    cell.alike = alike;
  }
}

// file:line of the code at an address, and of what it was inlined into.
std::string place(const void* address) {
  Dl_info object;
  if (!address || !dladdr(address, &object)) return "?";
  // One less: the address is that of the instruction after the call.
  const auto offset = reinterpret_cast<std::uintptr_t>(address) -
                      reinterpret_cast<std::uintptr_t>(object.dli_fbase) - 1;
  char command[4096];
  std::snprintf(command, sizeof(command), "addr2line -i -e '%s' %#zx 2>&1", object.dli_fname,
                std::size_t(offset));
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> answer(popen(command, "r"), &pclose);
  std::string found;
  char line[4096];
  while (answer && std::fgets(line, sizeof(line), answer.get())) {
    std::string text(line);
    text = text.substr(text.rfind('/') + 1);
    found += (found.empty() ? "" : " in ") + text.substr(0, text.find_first_of(" \n"));
  }
  return found;
}

}  // namespace

void read_global(const void* at, std::size_t bytes, const void* from) {
  if (!is_global(at)) return;
  const Access mine = now(from);
  const auto begin = reinterpret_cast<std::uintptr_t>(at);
  for (std::uintptr_t k = begin / kCellBytes * kCellBytes; k < begin + bytes; k += kCellBytes) {
    GlobalCell& cell = cell_of(k);
    check(cell.write, mine, at, "a read of what was written by");
    join(cell.read, mine);
  }
}

void write_global(const void* at, std::size_t bytes, const void* from) {
  write(at, bytes, from, false);
}
void copy_reads_global(const void* at, std::size_t bytes, const void* from) {
  if (instrumented) read_global(at, bytes, from);
}
void write_global_alike(const void* at, std::size_t bytes, const void* from) {
  if (instrumented) write(at, bytes, from, true);
}

void forget_global() {
  pages.clear();
  recents = {};
  first_place = second_place = nullptr;
}

std::string places_of_conflict() {
  if (!second_place) return "";
  return "; first at " + place(first_place) + ", then at " + place(second_place);
}

}  // namespace host_gpu

namespace {

void refuse_in_a_kernel() {
  if (host_gpu::running) host_gpu::fail("an atomic access, for which there is no rule yet");
}

}  // namespace

// What g++ calls. Of atomics there are those of the launcher, on the host: a kernel that has one
// fails, or does not load, and needs a rule.
#define HOST_GPU_HOST_ATOMIC(bits, type)                                 \
  type __tsan_atomic##bits##_load(const volatile type* at, int) {        \
    refuse_in_a_kernel();                                                \
    return __atomic_load_n(at, __ATOMIC_SEQ_CST);                        \
  }                                                                      \
  void __tsan_atomic##bits##_store(volatile type* at, type value, int) { \
    refuse_in_a_kernel();                                                \
    __atomic_store_n(at, value, __ATOMIC_SEQ_CST);                       \
  }
#define HOST_GPU_ACCESS(name, kind, bytes)                           \
  void __tsan_##name##bytes(void* at) {                              \
    host_gpu::kind##_global(at, bytes, __builtin_return_address(0)); \
  }
#define HOST_GPU_ACCESSES(bytes)               \
  HOST_GPU_ACCESS(read, read, bytes)           \
  HOST_GPU_ACCESS(write, write, bytes)         \
  HOST_GPU_ACCESS(unaligned_read, read, bytes) \
  HOST_GPU_ACCESS(unaligned_write, write, bytes)
extern "C" {
HOST_GPU_ACCESSES(1)
HOST_GPU_ACCESSES(2)
HOST_GPU_ACCESSES(4)
HOST_GPU_ACCESSES(8)
HOST_GPU_ACCESSES(16)
void __tsan_read_range(void* at, std::size_t bytes) {
  host_gpu::read_global(at, bytes, __builtin_return_address(0));
}
void __tsan_write_range(void* at, std::size_t bytes) {
  host_gpu::write_global(at, bytes, __builtin_return_address(0));
}
HOST_GPU_HOST_ATOMIC(8, std::int8_t)
HOST_GPU_HOST_ATOMIC(32, std::int32_t)
void __tsan_init() { host_gpu::instrumented = true; }
}
