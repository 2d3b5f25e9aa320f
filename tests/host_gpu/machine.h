// A GPU of three resident blocks, executed on the CPU one thread at a time.
//
// A thread runs until it has to wait for others, so a barrier that is missing leaves the others far
// behind and shows. What the hardware would punish, or silently get wrong, ends the launch with an
// error: see Block and the messages in machine.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "fiber.h"

// Which of the faults is planted that a test compiled in, by its number; 0: none.
extern "C" int host_gpu_fault;

namespace host_gpu {

constexpr int kResidentBlocks = 3;
constexpr int kWarpSize = 32;

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

// Who accessed two bytes of shared memory last. An epoch is the time between two barriers.
struct Cell {
  enum : std::int16_t { nobody = -1, many = -2 };
  std::int16_t writer = nobody, reader = nobody;
  bool written = false, pending = false;  // pending: an asynchronous copy is on its way
  std::uint32_t write_epoch = 0, read_epoch = 0;
};

struct Barrier {
  int arrived = 0;
  std::uint32_t generation = 0;
  const char* file = nullptr;
  int line = 0;
};

struct Warp {
  Barrier barrier;
  const char* instruction = nullptr;
  void* arguments[kWarpSize] = {};
};

struct Block;

struct Thread {
  enum class Waits { no, warp, block, grid, done };
  struct Copy {
    std::byte* to;
    const std::byte* from;
    const void* code;
    int bytes;  // that are read; zeros follow
    std::int64_t group;
  };
  Fiber fiber;
  Index threadIdx, blockIdx;
  Block* block = nullptr;
  Waits waits = Waits::no;
  std::uint32_t generation = 0;  // of the barrier it waits for
  bool executes_warp = false;    // an instruction, for all lanes
  std::vector<Copy> copies;
  std::int64_t groups = 0;  // of copies that are committed

  int lane() const { return int(threadIdx.x) % kWarpSize; }
  Warp& warp() const;
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barrier;
  std::vector<std::byte> memory;  // shared by the block
  std::vector<Cell> cells;

  // Accesses of the running thread to shared memory; each checks that the bytes are inside, that
  // what is read was written, and that another thread's access lies behind a barrier.
  void read(const void* at, std::size_t bytes, std::size_t alignment);
  void write(const void* at, std::size_t bytes, std::size_t alignment);
  void copy_begins(const void* at, std::size_t bytes, std::size_t alignment);
  void copy_ends(const void* at, std::size_t bytes);
  bool owns(const void* at) const {
    return std::size_t(static_cast<const std::byte*>(at) - memory.data()) < memory.size();
  }

 private:
  Cell* cells_of(const void* at, std::size_t bytes, std::size_t alignment, const char* what);
};

extern Thread* running;
extern Index grid_size;

// Ends the launch with an error.
[[noreturn]] void fail(const std::string& message);

// Grows with every barrier of the grid and with every launch.
std::uint32_t grid_epoch();

void wait_for_block(const char* file, int line);
void wait_for_grid(const char* file, int line);

// 16 bytes from global to shared memory, which are not there before they are waited for; the first
// `bytes` of them are read, the others are zeros.
void begin_copy(void* to, const void* from, int bytes = 16);
void commit_copies();
void end_copies();             // all, committed or not
void end_copies(int pending);  // of all committed groups but the last so many

// All lanes of the warp come together; the last one executes `run` for all of them.
void wait_for_warp(const char* instruction, void* arguments, void (*run)(Warp&));

// Whether all blocks of a launch are resident, so that they can wait for each other, or come and go
// a few at a time.
enum class Grid { cooperative, ordinary };

// Runs one launch; throws std::runtime_error if a rule was broken. With HOST_GPU_BACKWARDS in the
// environment, threads and blocks are visited in the opposite order: results must be the same.
void launch(const std::string& what, Grid kind, std::int64_t blocks, int threads,
            std::size_t shared, const std::function<void()>& kernel);

// Launches, and products of a warp (mma), of this process so far; tests read them from the module.
extern "C" __attribute__((visibility("default"))) std::int64_t host_gpu_launches();
extern "C" __attribute__((visibility("default"))) std::int64_t host_gpu_products();

}  // namespace host_gpu
