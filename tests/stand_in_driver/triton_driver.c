// Stands in for libcuda.so.1 under Triton's launcher: takes every call a launch makes, checks what
// a driver would refuse, writes down what was launched, and computes nothing.

#include <elf.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

#define EXPORT __attribute__((visibility("default")))

typedef struct {
  char name[128];
  int dynamic_limit;  // of shared memory; what a function may ask for before it is raised
  int sizes[64];      // of its parameters in bytes
  int parameters;     // how many
} Function;

typedef struct {
  const char* name;
  unsigned grid[3];
  unsigned block;
  unsigned shared;
  unsigned long long stream;
  unsigned long long digest;  // of what the parameters hold
} Launch;

enum { kMostLaunches = 1 << 20, kDefaultShared = 48 << 10, kProcessors = 132 };

static int major = 9, minor = 0, version = 13000;
static int current_context;
static Launch launches[kMostLaunches];
static long launched, waits;
static long refuse_at = -1;  // how many launches to take before one is refused
static char refused[256];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static CUresult refuse(const char* what) {
  snprintf(refused, sizeof refused, "%s", what);
  return CUDA_ERROR_INVALID_VALUE;
}

static int most_shared(void) {
  if (major == 8) return (minor == 0 ? 163 : 99) << 10;
  return 227 << 10;
}

// What the tests ask.
EXPORT void stand_in_set(int new_major, int new_minor, int new_version) {
  major = new_major, minor = new_minor, version = new_version;
}
EXPORT long stand_in_launched(void) { return launched; }
EXPORT const Launch* stand_in_launch(long i) { return &launches[i]; }
EXPORT long stand_in_waits(void) { return waits; }
EXPORT const char* stand_in_refused(void) { return refused; }
EXPORT void stand_in_forget(void) { launched = waits = 0, refused[0] = 0; }
EXPORT void stand_in_refuse(long after) { refuse_at = after; }

EXPORT CUresult cuInit(unsigned flags) { return flags ? refuse("cuInit: flags") : CUDA_SUCCESS; }
EXPORT CUresult cuDriverGetVersion(int* out) { return *out = version, CUDA_SUCCESS; }
EXPORT CUresult cuGetErrorString(CUresult code, const char** out) {
  *out = refused[0] ? refused : "an error of the stand-in driver";
  (void)code;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGet(CUdevice* out, int ordinal) {
  if (ordinal) return refuse("cuDeviceGet: there is one device");
  return *out = 0, CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetCount(int* out) { return *out = 1, CUDA_SUCCESS; }
EXPORT CUresult cuDeviceGetAttribute(int* out, CUdevice_attribute attribute, CUdevice device) {
  (void)device;
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      *out = major;
      break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      *out = minor;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      *out = most_shared();
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      *out = most_shared() + 1024;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
      *out = 65536;
      break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      *out = kProcessors;
      break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
      *out = 32;
      break;
    default:
      *out = 1;
      break;  // clocks and widths, which Triton only reports
  }
  return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetCurrent(CUcontext* out) {
  return *out = (CUcontext)&current_context, CUDA_SUCCESS;
}
EXPORT CUresult cuCtxGetDevice(CUdevice* out) { return *out = 0, CUDA_SUCCESS; }
EXPORT CUresult cuCtxSetCurrent(CUcontext context) { return (void)context, CUDA_SUCCESS; }
EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice device) {
  return (void)device, cuCtxGetCurrent(out);
}
EXPORT CUresult cuCtxGetLimit(size_t* out, CUlimit limit) {
  return (void)limit, *out = 0, CUDA_SUCCESS;
}
EXPORT CUresult cuCtxSetLimit(CUlimit limit, size_t value) {
  return (void)limit, (void)value, CUDA_SUCCESS;
}

EXPORT CUresult cuModuleLoadData(CUmodule* out, const void* image) {
  if (!image) return refuse("cuModuleLoadData: no image");
  return *out = (CUmodule)image, CUDA_SUCCESS;
}
EXPORT CUresult cuModuleUnload(CUmodule module) { return (void)module, CUDA_SUCCESS; }
// A cubin lists its kernel's parameters in the section .nv.info.NAME: entries of 16 bytes, format 4
// and attribute 0x17, with the parameter's place at byte 4 and its size in the upper 14 bits of the
// last word.
static void read_cubin(Function* function, const char* image) {
  const Elf64_Ehdr* header = (const Elf64_Ehdr*)image;
  const Elf64_Shdr* sections = (const Elf64_Shdr*)(image + header->e_shoff);
  const char* names = image + sections[header->e_shstrndx].sh_offset;
  char wanted[160];
  snprintf(wanted, sizeof wanted, ".nv.info.%s", function->name);
  for (int k = 0; k < header->e_shnum; ++k) {
    if (strcmp(names + sections[k].sh_name, wanted) != 0) continue;
    const char* at = image + sections[k].sh_offset;
    const char* end = at + sections[k].sh_size;
    for (unsigned short size; at + 4 <= end; at += 4 + (at[0] == 4 ? size : 0)) {
      memcpy(&size, at + 2, sizeof size);
      if (at[0] != 4 || at[1] != 0x17) continue;
      unsigned place, packed;
      memcpy(&place, at + 8, 2), place &= 0xffff;
      memcpy(&packed, at + 12, sizeof packed);
      if (place >= 64) continue;
      function->sizes[place] = (int)(packed >> 18);
      if ((int)place >= function->parameters) function->parameters = (int)place + 1;
    }
  }
}

// An image of the tests says the sizes of its kernel's parameters in words.
static void read_sizes(Function* function, const char* image) {
  static const char mark[] = "parameters of";
  if (memcmp(image, ELFMAG, SELFMAG) == 0) read_cubin(function, image);
  if (strncmp(image, mark, sizeof mark - 1) != 0) return;
  const char* at = image + sizeof mark - 1;
  for (int size, used; sscanf(at, "%d%n", &size, &used) == 1; at += used)
    function->sizes[function->parameters++] = size;
}
EXPORT CUresult cuFuncGetParamInfo(CUfunction handle, size_t index, size_t* offset, size_t* size) {
  const Function* function = (const Function*)handle;
  if ((int)index >= function->parameters) return CUDA_ERROR_INVALID_VALUE;
  return *offset = 0, *size = function->sizes[index], CUDA_SUCCESS;
}
EXPORT CUresult cuModuleGetFunction(CUfunction* out, CUmodule module, const char* name) {
  Function* function = calloc(1, sizeof *function);
  snprintf(function->name, sizeof function->name, "%s", name);
  read_sizes(function, (const char*)module);
  function->dynamic_limit = kDefaultShared;
  return *out = (CUfunction)function, CUDA_SUCCESS;
}
EXPORT CUresult cuFuncGetAttribute(int* out, CUfunction_attribute attribute, CUfunction function) {
  (void)function;
  *out = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024
         : attribute == CU_FUNC_ATTRIBUTE_NUM_REGS            ? 128
                                                              : 0;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
  if (value > most_shared()) return refuse("cuFuncSetAttribute: more shared memory than there is");
  return ((Function*)function)->dynamic_limit = value, CUDA_SUCCESS;
}
EXPORT CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) {
  return (void)function, (void)config, CUDA_SUCCESS;
}

// A CPU tensor's address stands for a GPU's.
EXPORT CUresult cuPointerGetAttribute(void* out, CUpointer_attribute attribute,
                                      CUdeviceptr address) {
  if (attribute != CU_POINTER_ATTRIBUTE_DEVICE_POINTER) return refuse("cuPointerGetAttribute");
  return *(CUdeviceptr*)out = address, CUDA_SUCCESS;
}

// What a GPU would read, FNV-1a.
static unsigned long long digest_of(const Function* function, void** parameters) {
  unsigned long long digest = 14695981039346656037ull;
  for (int k = 0; k < function->parameters; ++k)
    for (int byte = 0; byte < function->sizes[k]; ++byte)
      digest = (digest ^ ((unsigned char*)parameters[k])[byte]) * 1099511628211ull;
  return digest;
}

static CUresult record(const unsigned grid[3], const unsigned block[3], unsigned shared,
                       CUstream stream, CUfunction handle, void** parameters) {
  Function* function = (Function*)handle;
  if (!function || !parameters) return refuse("a launch without function or parameters");
  if (refuse_at >= 0 && refuse_at-- == 0) return CUDA_ERROR_INVALID_CONTEXT;
  if (!grid[0] || !grid[1] || !grid[2]) return refuse("an empty grid");
  if (grid[0] > 0x7fffffffu || grid[1] > 65535 || grid[2] > 65535)
    return refuse("a grid too large");
  if (!block[0] || block[0] * block[1] * block[2] > 1024) return refuse("more than 1024 threads");
  if ((int)shared > function->dynamic_limit) return refuse("shared memory above its limit");
  pthread_mutex_lock(&lock);
  if (launched < kMostLaunches) {
    launches[launched++] =
        (Launch){function->name, {grid[0], grid[1], grid[2]}, block[0] * block[1] * block[2],
                 shared,         (unsigned long long)stream,  digest_of(function, parameters)};
  }
  pthread_mutex_unlock(&lock);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function,
                                 void** parameters, void** extra) {
  (void)extra;
  const unsigned grid[3] = {config->gridDimX, config->gridDimY, config->gridDimZ};
  const unsigned block[3] = {config->blockDimX, config->blockDimY, config->blockDimZ};
  return record(grid, block, config->sharedMemBytes, config->hStream, function, parameters);
}
EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz,
                               unsigned bx, unsigned by, unsigned bz, unsigned shared,
                               CUstream stream, void** parameters, void** extra) {
  (void)extra;
  const unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
  return record(grid, block, shared, stream, function, parameters);
}

// A step that waits for the GPU is a finding.
EXPORT CUresult cuStreamSynchronize(CUstream stream) { return (void)stream, ++waits, CUDA_SUCCESS; }
EXPORT CUresult cuCtxSynchronize(void) { return ++waits, CUDA_SUCCESS; }
EXPORT CUresult cuEventSynchronize(CUevent event) { return (void)event, ++waits, CUDA_SUCCESS; }
