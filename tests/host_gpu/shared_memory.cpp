// The checks of accesses to shared memory that machine.h names.
#include <string>

#include "machine.h"

namespace host_gpu {

Cell* Block::cells_of(const void* at, std::size_t bytes, std::size_t alignment, const char* what) {
  const auto* p = static_cast<const std::byte*>(at);
  if (p < memory.data() || p + bytes > memory.data() + memory.size())
    fail(std::string(what) + " of " + std::to_string(bytes) + " bytes outside of shared memory");
  if (std::size_t(p - memory.data()) % alignment != 0)
    fail(std::string(what) + " of shared memory is not aligned");
  return cells.data() + (p - memory.data()) / 2;
}

void Block::read(const void* at, std::size_t bytes, std::size_t alignment) {
  Cell* const found = cells_of(at, bytes, alignment, "a read");
  const auto self = std::int16_t(running->threadIdx.x);
  for (Cell* c = found; c < found + (bytes + 1) / 2; ++c) {
    if (c->pending) fail("a read of shared memory whose copy was not waited for");
    if (!c->written) fail("a read of shared memory that nobody wrote");
    if (c->write_epoch == barrier.generation && c->writer != self)
      fail("a read of shared memory that thread " + std::to_string(c->writer) +
           " wrote, with no barrier between");
    c->reader =
        c->read_epoch == barrier.generation && c->reader != Cell::nobody && c->reader != self
            ? std::int16_t(Cell::many)
            : self;
    c->read_epoch = barrier.generation;
  }
}

void Block::write(const void* at, std::size_t bytes, std::size_t alignment) {
  copy_begins(at, bytes, alignment);
  copy_ends(at, bytes);
}

void Block::copy_begins(const void* at, std::size_t bytes, std::size_t alignment) {
  Cell* const found = cells_of(at, bytes, alignment, "a write");
  const auto self = std::int16_t(running->threadIdx.x);
  for (Cell* c = found; c < found + (bytes + 1) / 2; ++c) {
    if (c->pending) fail("a write to shared memory while a copy to it is on its way");
    if (c->written && c->write_epoch == barrier.generation && c->writer != self)
      fail("a write over what thread " + std::to_string(c->writer) +
           " wrote, with no barrier between");
    if (c->reader != Cell::nobody && c->read_epoch == barrier.generation && c->reader != self)
      fail("a write over what another thread reads, with no barrier between");
    c->pending = true;
  }
}

void Block::copy_ends(const void* at, std::size_t bytes) {
  Cell* const found = cells_of(at, bytes, 1, "a write");
  for (Cell* c = found; c < found + (bytes + 1) / 2; ++c) {
    c->pending = false;
    c->written = true;
    c->writer = std::int16_t(running->threadIdx.x);
    c->write_epoch = barrier.generation;
  }
}

}  // namespace host_gpu
