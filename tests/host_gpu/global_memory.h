// Who accessed global memory since the last barrier of the grid.
//
// A build with -fsanitize=thread calls a function before every load and store of a kernel; they are
// ours here, no runtime of the compiler's is linked. So whatever way a kernel takes to global
// memory is seen, without a word in the kernels.
//
// An access by one block and a write by another must have a barrier of the grid, or the end of a
// launch, between them; two threads of one block need a barrier of the block. What lies on the
// stack of the running thread is its own, shared memory has checks of its own (machine.h).
#pragma once

#include <cstddef>
#include <string>

namespace host_gpu {

// By the running thread. `from`: an address of the code that asks, for the message.
void read_global(const void* at, std::size_t bytes, const void* from);
void write_global(const void* at, std::size_t bytes, const void* from);
// The same of an asynchronous copy, which no load of the kernel shows.
void copy_reads_global(const void* at, std::size_t bytes, const void* from);
// A write that others may do too, with the same value.
void write_global_alike(const void* at, std::size_t bytes, const void* from);

// What is known of earlier launches is forgotten: whatever they did is done.
void forget_global();
// Of the two accesses that ended the launch, where they are in the sources; else empty.
std::string places_of_conflict();

}  // namespace host_gpu
