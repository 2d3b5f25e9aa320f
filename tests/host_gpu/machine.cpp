#include "machine.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <stdexcept>

#include "barriers.h"
#include "global_memory.h"

#if defined(__x86_64__)
asm(R"(
.text
.globl host_gpu_switch
.hidden host_gpu_switch
.type host_gpu_switch, @function
host_gpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size host_gpu_switch, .-host_gpu_switch
)");
#endif

namespace host_gpu {

Thread* running = nullptr;
Index grid_size;

namespace {

std::deque<Block> blocks;  // kept between launches: stacks are large
Barrier grid;
int wanted_threads = 0;  // of the whole grid
std::int64_t launches = 0, products = 0;
std::string error;
bool backwards = false, all_resident = false;
const std::function<void()>* kernel = nullptr;

void entry() {
  running->fiber.arrived();
  (*kernel)();
  if (!running->copies.empty()) fail("a thread ended with asynchronous copies not waited for");
  running->waits = Thread::Waits::done;
  running->fiber.pause();
}

std::string who(int thread) { return "thread " + std::to_string(thread); }

bool ready(const Thread& t) {
  switch (t.waits) {
    case Thread::Waits::no:
      return true;
    case Thread::Waits::warp:
      return t.warp().barrier.generation != t.generation;
    case Thread::Waits::block:
      return t.block->barrier.generation != t.generation;
    case Thread::Waits::grid:
      return grid.generation != t.generation;
    case Thread::Waits::done:
      return false;
  }
  return false;
}

// Runs what can run in a block until nothing can; whether anything did.
bool run_block(Block& block) {
  bool any = false, progress = true;
  const int count = int(block.threads.size());
  while (progress) {
    progress = false;
    for (int k = 0; k < count; ++k) {
      Thread& t = block.threads[backwards ? count - 1 - k : k];
      if (!ready(t)) continue;
      t.waits = Thread::Waits::no;
      running = &t;
      t.fiber.resume();
      running = nullptr;
      if (!error.empty()) return true;
      any = progress = true;
    }
  }
  return any;
}

std::string stuck() {
  int at[5] = {};
  std::string place;
  for (const Block& block : blocks)
    for (const Thread& t : block.threads) {
      ++at[int(t.waits)];
      if (t.waits == Thread::Waits::block && place.empty())
        place = std::string(" at ") + block.barrier.file + ":" + std::to_string(block.barrier.line);
    }
  return "a barrier is not reached by all threads: " + std::to_string(at[1]) +
         " wait for their warp, " + std::to_string(at[2]) + " for their block" + place + ", " +
         std::to_string(at[3]) + " for the grid, " + std::to_string(at[4]) + " have ended";
}

void arrive(Barrier& barrier, int wanted, Thread::Waits waits, const char* file, int line) {
  if (barrier.arrived == 0) {
    barrier.file = file;
    barrier.line = line;
  } else if (barrier.line != line || std::strcmp(barrier.file, file) != 0) {
    fail(std::string("threads wait at different barriers: ") + barrier.file + ":" +
         std::to_string(barrier.line) + " and " + file + ":" + std::to_string(line));
  }
  if (++barrier.arrived == wanted) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  Thread* const self = running;
  self->waits = waits;
  self->generation = barrier.generation;
  self->fiber.pause();
}

}  // namespace

Warp& Thread::warp() const { return block->warps[threadIdx.x / kWarpSize]; }

void fail(const std::string& message) {
  error = "block " + std::to_string(running->blockIdx.x) + ", " + who(int(running->threadIdx.x)) +
          ": " + message;
  running->fiber.pause();  // for good
  std::abort();
}

void wait_for_block(const char* file, int line) {
  if (left_out("block", file, line)) return;
  arrive(running->block->barrier, int(running->block->threads.size()), Thread::Waits::block, file,
         line);
}

void wait_for_grid(const char* file, int line) {
  if (!all_resident) fail("a barrier of the grid in an ordinary launch");
  arrive(running->block->barrier, int(running->block->threads.size()), Thread::Waits::block, file,
         line);
  if (left_out("grid", file, line)) return;
  arrive(grid, wanted_threads, Thread::Waits::grid, file, line);
}

std::uint32_t grid_epoch() { return grid.generation; }

void begin_copy(void* to, const void* from, int bytes) {
  if (reinterpret_cast<std::uintptr_t>(from) % 16 != 0)
    fail("cp.async from an address that is no multiple of 16");
  const void* const code = __builtin_return_address(0);
  running->block->copy_begins(to, 16, 16);
  if (bytes < 0 || bytes > 16) fail("cp.async of " + std::to_string(bytes) + " bytes of 16");
  if (bytes) copy_reads_global(from, bytes, code);
  running->copies.push_back({static_cast<std::byte*>(to), static_cast<const std::byte*>(from), code,
                             bytes, running->groups});
}

void commit_copies() { ++running->groups; }

namespace {

void end_groups_before(std::int64_t group) {
  std::vector<Thread::Copy>& copies = running->copies;
  const auto is_done = [&](const Thread::Copy& copy) { return copy.group < group; };
  for (const Thread::Copy& copy : copies) {
    if (!is_done(copy)) continue;
    if (copy.bytes) copy_reads_global(copy.from, copy.bytes, copy.code);
    std::memset(copy.to, 0, 16);
    std::memcpy(copy.to, copy.from, copy.bytes);
    running->block->copy_ends(copy.to, 16);
  }
  copies.erase(std::remove_if(copies.begin(), copies.end(), is_done), copies.end());
}

}  // namespace

void end_copies() { end_groups_before(running->groups + 1); }
void end_copies(int pending) { end_groups_before(running->groups - pending); }

void wait_for_warp(const char* instruction, void* arguments, void (*run)(Warp&)) {
  Warp& warp = running->warp();
  if (warp.barrier.arrived == 0)
    warp.instruction = instruction;
  else if (std::strcmp(warp.instruction, instruction) != 0)
    fail(std::string("lanes of one warp are at different instructions: ") + warp.instruction +
         " and " + instruction);
  warp.arguments[running->lane()] = arguments;
  if (warp.barrier.arrived == kWarpSize - 1) {
    if (std::strncmp(instruction, "mma", 3) == 0) ++products;
    running->executes_warp = true;
    run(warp);
    running->executes_warp = false;
  }
  arrive(warp.barrier, kWarpSize, Thread::Waits::warp, instruction, 0);
}

namespace {

// Blocks `first` and following, until all of them have ended or none can go on.
void run_resident(std::int64_t first, int count, int threads, std::size_t shared) {
  blocks.resize(count);
  wanted_threads = count * threads;
  for (int b = 0; b < count; ++b) {
    Block& block = blocks[b];
    block.barrier = {};
    if (int(block.threads.size()) != threads) block.threads = std::vector<Thread>(threads);
    block.warps.assign(threads / kWarpSize, {});
    block.memory.assign(shared, std::byte(0xff));  // NaN of every floating-point type
    block.cells.assign((shared + 1) / 2, {});
    for (int t = 0; t < threads; ++t) {
      Thread& thread = block.threads[t];
      thread.threadIdx.x = unsigned(t);
      thread.blockIdx.x = unsigned(first + b);
      thread.block = &block;
      thread.waits = Thread::Waits::no;
      thread.executes_warp = false;
      thread.copies.clear();
      thread.groups = 0;
      thread.fiber.reset(&entry);
    }
  }
  bool progress = true;
  while (progress && error.empty()) {
    progress = false;
    for (int b = 0; b < count && error.empty(); ++b)
      progress |= run_block(blocks[backwards ? count - 1 - b : b]);
  }
  for (const Block& block : blocks)
    for (const Thread& t : block.threads)
      if (t.waits != Thread::Waits::done && error.empty()) error = stuck();
}

}  // namespace

std::int64_t host_gpu_launches() { return launches; }
std::int64_t host_gpu_products() { return products; }

void launch(const std::string& what, Grid kind, std::int64_t block_count, int threads,
            std::size_t shared, const std::function<void()>& function) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  ++launches;
  error.clear();
  grid.arrived = 0;
  ++grid.generation;
  forget_global();
  read_barrier_to_leave_out();
  backwards = std::getenv("HOST_GPU_BACKWARDS") != nullptr;
  kernel = &function;
  grid_size = {unsigned(block_count), 1, 1};
  all_resident = kind == Grid::cooperative;
  const std::int64_t step = all_resident ? block_count : std::int64_t(kResidentBlocks);
  const std::int64_t waves = (block_count + step - 1) / step;
  for (std::int64_t wave = 0; wave < waves && error.empty(); ++wave) {
    const std::int64_t first = (backwards ? waves - 1 - wave : wave) * step;
    run_resident(first, int(std::min(step, block_count - first)), threads, shared);
  }
  if (!error.empty()) throw std::runtime_error(what + ": " + error + places_of_conflict());
}

}  // namespace host_gpu
