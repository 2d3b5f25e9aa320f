// A libcuda.so.1 with no GPU behind it: the documented functions that CUDA's runtime calls before
// it launches anything. STAND_IN_DRIVER_VERSION is the CUDA that it says it serves, as 13000
// for 13.0; STAND_IN_DRIVER_LOG is a file that gets the name of each function that is asked for.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { success = 0, invalid_value = 1, not_found = 500 };

static void asked(const char* name) {
  const char* path = getenv("STAND_IN_DRIVER_LOG");
  FILE* file = path ? fopen(path, "a") : NULL;
  if (!file) return;
  fprintf(file, "%s\n", name);
  fclose(file);
}

int cuInit(unsigned flags) { return flags ? invalid_value : success; }

int cuDriverGetVersion(int* version) {
  const char* text = getenv("STAND_IN_DRIVER_VERSION");
  *version = text ? atoi(text) : 13000;
  return success;
}

int cuDeviceGetCount(int* count) {
  *count = 1;
  return success;
}

int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return success;
}

// Tables that NVIDIA does not document, by which runtime and driver know each other.
int cuGetExportTable(const void** table, const void* id) {
  (void)id;
  asked("cuGetExportTable");
  *table = NULL;
  return not_found;
}

static int unknown(void) { return not_found; }

int cuGetProcAddress_v2(const char* name, void** function, int version, uint64_t flags,
                        int* status) {
  static const struct {
    const char* name;
    void* function;
  } known[] = {
      {"cuInit", (void*)cuInit},
      {"cuDriverGetVersion", (void*)cuDriverGetVersion},
      {"cuDeviceGetCount", (void*)cuDeviceGetCount},
      {"cuDeviceGet", (void*)cuDeviceGet},
      {"cuGetExportTable", (void*)cuGetExportTable},
      {"cuGetProcAddress", (void*)cuGetProcAddress_v2},
  };
  (void)version, (void)flags;
  asked(name);
  *function = strncmp(name, "cu", 2) == 0 ? (void*)unknown : NULL;
  for (unsigned k = 0; k < sizeof known / sizeof *known; ++k)
    if (strcmp(name, known[k].name) == 0) *function = known[k].function;
  if (status) *status = *function ? 0 : 1;
  return *function ? success : not_found;
}
