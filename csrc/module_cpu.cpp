// Python module of the CPU backend: addresses in, numbers written. It knows nothing of torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "cpu/kernels.h"

namespace py = pybind11;

namespace {

using Integers = std::array<std::int64_t, 5>;

// Builds that this machine can run, the fastest first.
std::vector<msk::Kernels> runnable() {
  std::vector<msk::Kernels> found;
#ifdef MSK_HAS_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    found.push_back(msk::avx512::kernels());
#endif
#ifdef MSK_HAS_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    found.push_back(msk::avx2::kernels());
#endif
  found.push_back(msk::baseline::kernels());
  return found;
}

msk::Kernels& kernels() {
  static msk::Kernels chosen = runnable().front();
  return chosen;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const msk::Kernels& build : runnable()) names.push_back(build.instruction_set);
  return names;
}

void use_instruction_set(const std::string& name) {
  for (const msk::Kernels& build : runnable())
    if (name == build.instruction_set) {
      kernels() = build;
      return;
    }
  throw std::invalid_argument("instruction set: expected one of instruction_sets(), got '" + name +
                              "'");
}

template <typename P = const void>
P* pointer(std::int64_t address) {
  return reinterpret_cast<P*>(static_cast<std::intptr_t>(address));
}

msk::SideInput side(const Integers& a) {
  if (a[2] < 0 || a[2] > std::numeric_limits<std::int32_t>::max() - 1024)
    throw std::invalid_argument("embeddings: expected fewer than 2^31 - 1024 rows, got " +
                                std::to_string(a[2]));
  return {pointer(a[0]), a[1], a[2], pointer<const std::int64_t>(a[3]),
          pointer<const std::int64_t>(a[4])};
}

msk::TermInput term(const std::optional<Integers>& a) {
  if (!a) return {};
  return {pointer((*a)[0]), pointer((*a)[1]), pointer((*a)[2]), pointer((*a)[3]), pointer((*a)[4])};
}

// 2 MiB pages where the system grants them on request: a call touches every page for the first
// time.
void prefer_huge_pages(std::byte* block, std::int64_t bytes) {
#ifdef __linux__
  constexpr std::uintptr_t page = 4096;
  const std::uintptr_t start = (reinterpret_cast<std::uintptr_t>(block) + page - 1) / page * page;
  const std::uintptr_t end = reinterpret_cast<std::uintptr_t>(block) + bytes;
  if (bytes >= (4 << 20)) madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
#else
  (void)block, (void)bytes;
#endif
}

msk::Options options_from(const std::array<double, 6>& o) {
  return {o[0], o[1], o[2], o[3], o[4], o[5] != 0};
}

// One call: built from addresses, it names the workspace it needs; the caller allocates that. It
// keeps the build that it was made with: another one would cut the workspace differently.
class Call {
 public:
  Call(msk::Job job, msk::DType dtype, std::int64_t depth, const Integers& rows,
       const std::optional<Integers>& columns, const std::array<double, 6>& options) {
    problem_.job = job;
    problem_.dtype = dtype;
    problem_.depth = depth;
    problem_.rows = side(rows);
    problem_.self = !columns;
    if (columns) problem_.columns = side(*columns);
    problem_.options = options_from(options);
  }

  void write_statistics(const std::array<std::int64_t, 6>& out) {
    problem_.statistics = {pointer<void>(out[0]),         pointer<void>(out[1]),
                           pointer<void>(out[2]),         pointer<void>(out[3]),
                           pointer<std::int64_t>(out[4]), pointer<std::int64_t>(out[5])};
  }
  void write_loss(std::int64_t row_loss, std::int64_t kept) {
    problem_.row_loss = pointer<void>(row_loss);
    problem_.kept = pointer<std::int64_t>(kept);
  }
  void read_terms(const std::optional<Integers>& row_term,
                  const std::optional<Integers>& column_term) {
    problem_.row_term = term(row_term);
    problem_.column_term = term(column_term);
  }
  void write_gradients(std::int64_t d_rows, std::int64_t d_columns) {
    problem_.d_rows = pointer<void>(d_rows);
    problem_.d_columns = pointer<void>(d_columns);
  }

  std::int64_t plan(int threads, std::int64_t budget) {
    problem_.threads = threads;
    build_.plan(problem_, budget);
    planned_ = true;
    return problem_.workspace_bytes;
  }
  void run(std::int64_t workspace) {
    if (!planned_) throw std::invalid_argument("run: expected a call of plan() before, got none");
    if (!workspace && problem_.workspace_bytes)
      throw std::invalid_argument("workspace: expected the address of " +
                                  std::to_string(problem_.workspace_bytes) + " bytes, got 0");
    if (workspace % 64 != 0)
      throw std::invalid_argument("workspace: expected an address that is a multiple of 64");
    problem_.workspace = pointer<std::byte>(workspace);
    prefer_huge_pages(problem_.workspace, problem_.workspace_bytes);
    build_.solve(problem_);
  }

 private:
  msk::Kernels build_ = kernels();
  msk::Problem problem_{};
  bool planned_ = false;
};

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.def("instruction_set", [] { return kernels().instruction_set; });
  m.def("instruction_sets", &instruction_sets);
  m.def("use_instruction_set", &use_instruction_set, py::arg("name"));

  m.def(
      "row_loss",
      [](msk::DType dtype, const std::array<double, 6>& options, std::int64_t pos_lse,
         std::int64_t neg_lse, std::int64_t out, std::int64_t count) {
        kernels().row_loss(dtype, options_from(options), pointer(pos_lse), pointer(neg_lse),
                           pointer<void>(out), count);
      },
      py::arg("dtype"), py::arg("options"), py::arg("pos_lse"), py::arg("neg_lse"), py::arg("out"),
      py::arg("count"));
  m.def(
      "exp",
      [](msk::DType dtype, std::int64_t in, std::int64_t out, std::int64_t count) {
        kernels().exp(dtype, pointer(in), pointer<void>(out), count);
      },
      py::arg("dtype"), py::arg("from_address"), py::arg("to_address"), py::arg("count"));

  py::enum_<msk::DType>(m, "DType")
      .value("float16", msk::DType::float16)
      .value("bfloat16", msk::DType::bfloat16)
      .value("float32", msk::DType::float32)
      .value("float64", msk::DType::float64);
  py::enum_<msk::Job>(m, "Job")
      .value("statistics", msk::Job::statistics)
      .value("gradient", msk::Job::gradient)
      .value("loss_and_gradient", msk::Job::loss_and_gradient);

  // Addresses are integers, 0 for what is absent. A side is (embeddings, row stride, count, labels,
  // ids), a term (hardest_positive, hardest_negative, pos_lse, neg_lse, dloss); options are (alpha,
  // beta, base, epsilon, max_positive_similarity, normalize).
  py::class_<Call>(m, "Call")
      .def(py::init<msk::Job, msk::DType, std::int64_t, const Integers&,
                    const std::optional<Integers>&, const std::array<double, 6>&>(),
           py::arg("job"), py::arg("dtype"), py::arg("depth"), py::arg("rows"), py::arg("columns"),
           py::arg("options"))
      .def("write_statistics", &Call::write_statistics, py::arg("out"))
      .def("write_loss", &Call::write_loss, py::arg("row_loss"), py::arg("kept"))
      .def("read_terms", &Call::read_terms, py::arg("row_term"), py::arg("column_term"))
      .def("write_gradients", &Call::write_gradients, py::arg("d_rows"), py::arg("d_columns"))
      .def("plan", &Call::plan, py::arg("threads"), py::arg("budget"))
      .def("run", &Call::run, py::arg("workspace"), py::call_guard<py::gil_scoped_release>());
}
