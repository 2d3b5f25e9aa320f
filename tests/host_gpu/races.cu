// Small kernels that race, or do not: what the machine must see, and what it must let pass.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cuda/core/grid_barrier.cuh"
#include "cuda/core/launch.cuh"
#include "cuda/core/ptx.cuh"

namespace msk::gpu {

namespace {

enum class Between : int { nothing, block_barrier, grid_barrier };

struct Problem {
  std::int32_t* memory;
  Between between;
};

void wait(Between between) {
  if (between == Between::grid_barrier) grid_barrier();
  if (between == Between::block_barrier) __syncthreads();
}
bool first_thread() { return threadIdx.x == 0; }

// Of two blocks, the first runs first.
void other_block_reads(const Problem p) {
  if (blockIdx.x == 0 && first_thread()) p.memory[0] = 1;
  wait(p.between);
  if (blockIdx.x == 1 && first_thread()) p.memory[1] = p.memory[0];
}
void other_block_reads_before(const Problem p) {
  if (blockIdx.x == 0 && first_thread()) p.memory[1] = p.memory[0];
  wait(p.between);
  if (blockIdx.x == 1 && first_thread()) p.memory[0] = 1;
}
void other_block_writes(const Problem p) {
  if (blockIdx.x == 0 && first_thread()) p.memory[0] = 1;
  wait(p.between);
  if (blockIdx.x == 1 && first_thread()) p.memory[0] = 1;
}
void all_read_and_one_writes(const Problem p) {
  const std::int32_t found = first_thread() ? p.memory[0] : 0;
  wait(p.between);
  if (blockIdx.x == 0 && first_thread()) p.memory[0] = found + 1;
}
void other_thread_reads(const Problem p) {
  if (first_thread()) p.memory[blockIdx.x] = 1;
  wait(p.between);
  if (threadIdx.x == 1) p.memory[2 + blockIdx.x] = p.memory[blockIdx.x];
}
void other_block_copies(const Problem p) {
  if (blockIdx.x == 0 && first_thread()) p.memory[3] = 1;
  wait(p.between);
  if (blockIdx.x == 1 && first_thread()) cp_async_16(shared_memory(), p.memory);
  cp_async_wait_all();
}
// The copy is on its way while the other block writes, whatever lies between.
void copy_arrives_late(const Problem p) {
  if (blockIdx.x == 0 && first_thread()) cp_async_16(shared_memory(), p.memory);
  wait(p.between);
  if (blockIdx.x == 1 && first_thread()) p.memory[3] = 1;
  cp_async_wait_all();
}
void all_raise_a_flag(const Problem p) { raise_flag(p.memory); }
void a_flag_is_read(const Problem p) {
  if (first_thread()) raise_flag(p.memory);
  wait(p.between);
  if (first_thread()) p.memory[1 + blockIdx.x] = p.memory[0];
}
void a_flag_is_lowered(const Problem p) {
  if (first_thread()) raise_flag(p.memory);
  wait(p.between);
  if (blockIdx.x == 1 && first_thread()) p.memory[0] = 0;
}
void neighbours_write(const Problem p) {
  reinterpret_cast<std::int16_t*>(p.memory)[blockIdx.x * 32 + threadIdx.x] = 1;
}
void shared_memory_past_its_functions(const Problem) { *shared_memory() = std::byte(1); }

struct Kernel {
  const char* name;
  void (*run)(Problem);
};
constexpr Kernel kKernels[] = {
    {"other_block_reads", other_block_reads},
    {"other_block_reads_before", other_block_reads_before},
    {"other_block_writes", other_block_writes},
    {"all_read_and_one_writes", all_read_and_one_writes},
    {"other_thread_reads", other_thread_reads},
    {"other_block_copies", other_block_copies},
    {"copy_arrives_late", copy_arrives_late},
    {"all_raise_a_flag", all_raise_a_flag},
    {"a_flag_is_read", a_flag_is_read},
    {"a_flag_is_lowered", a_flag_is_lowered},
    {"neighbours_write", neighbours_write},
    {"shared_memory_past_its_functions", shared_memory_past_its_functions},
};

std::string said;
alignas(16) std::int32_t memory[128];

}  // namespace

// What the machine says of a kernel, nothing if it has no objection. Blocks of an ordinary launch
// need not meet: there are so many that the last begins when the first has ended.
extern "C" __attribute__((visibility("default"))) const char* race(const char* name, int between,
                                                                   bool ordinary) {
  said = "there is no such kernel";
  for (const Kernel& kernel : kKernels) {
    if (std::strcmp(kernel.name, name) != 0) continue;
    said.clear();
    const auto run = [&] { kernel.run({memory, Between(between)}); };
    try {
      if (ordinary)
        host_gpu::launch(name, host_gpu::Grid::ordinary, 2 * host_gpu::kResidentBlocks, 32, 16,
                         run);
      else
        host_gpu::launch(name, host_gpu::Grid::cooperative, 2, 32, 16, run);
    } catch (const std::runtime_error& error) {
      said = error.what();
    }
  }
  return said.c_str();
}

}  // namespace msk::gpu
