// Python module of the CPU backend: addresses in, numbers written. It knows nothing of torch.
#include <algorithm>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "cpu/kernels.h"
#include "module_call.h"
#include "rules/pair_loss.h"

namespace py = pybind11;

namespace {

using msk::InputIntegers;
using msk::pointer;

// (embeddings, row stride, count, labels, ids)
using SideIntegers = std::array<std::int64_t, 5>;
// Of each row: hardest positive, hardest negative, sum of the negatives or 0.
using KnownIntegers = std::array<std::int64_t, 3>;

msk::SideInput side(const SideIntegers& a) {
  msk::check_count(a[2]);
  return {pointer(a[0]), a[1], a[2], pointer<const std::int64_t>(a[3]),
          pointer<const std::int64_t>(a[4])};
}

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

// One call: built from addresses, it names the workspace it needs; the caller allocates that. It
// keeps the build that it was made with: another one would cut the workspace differently.
class Call : public msk::ModuleCall<msk::Problem> {
 public:
  Call(msk::Job job, msk::DType dtype, std::int64_t depth, const SideIntegers& rows,
       const std::optional<SideIntegers>& columns, const msk::SpecNumbers& spec)
      : ModuleCall(job, dtype, depth, side(rows),
                   columns ? std::optional(side(*columns)) : std::nullopt, spec) {
    problem_.columns_dtype = dtype;
  }

  std::int64_t plan(int threads, std::int64_t budget) {
    // Where those of the rows end no room was given.
    if (problem_.two_sided && problem_.statistics.hardest_positive)
      throw std::invalid_argument(
          "plan: expected no statistics of anchors on both sides, got some");
    problem_.threads = threads;
    build_.plan(problem_, budget);
    planned_ = true;
    return problem_.workspace_bytes;
  }
  void read_known(const KnownIntegers& known) {
    check_unplanned("read_known");
    if (problem_.job != msk::Job::statistics)
      throw std::invalid_argument("read_known: expected a call of statistics, got another job");
    problem_.known = {pointer(known[0]), pointer(known[1]), pointer(known[2])};
  }
  // Where it is not that of the rows.
  void read_columns_as(msk::DType dtype) {
    check_unplanned("read_columns_as");
    const bool wide = dtype == msk::DType::float64;
    if (problem_.self || (wide && problem_.dtype != dtype))
      throw std::invalid_argument(
          "read_columns_as: expected columns, no wider than the compute type");
    problem_.columns_dtype = dtype;
  }
  // Four numbers, to which those of a gradient are added.
  void add_weight_sums(std::int64_t sums) {
    check_unplanned("add_weight_sums");
    if (problem_.job == msk::Job::statistics)
      throw std::invalid_argument("add_weight_sums: expected a call of a gradient, got statistics");
    problem_.weight_sums = pointer<double>(sums);
  }
  // Columns are anchors as rows are; their losses follow those of the rows.
  void anchor_both() {
    check_unplanned("anchor_both");
    const msk::PairLoss<double> loss(problem_.rules, problem_.options.max_positive_similarity);
    if (problem_.self || problem_.job != msk::Job::loss_and_gradient || loss.ranked() ||
        loss.mining.hardest_negatives() > 1)
      throw std::invalid_argument(
          "anchor_both: expected loss_and_gradient of two sides, and rules that list neither "
          "triplets nor the hardest of a row");
    problem_.two_sided = true;
  }
  void write_total(std::int64_t total_loss, double scale) {
    problem_.total_loss = pointer<void>(total_loss);
    problem_.loss_scale = scale;
  }
  void run(std::int64_t workspace) {
    check_workspace(workspace, 64);
    solve(problem_, workspace);
  }
  // Of a call that was planned: outputs are the total loss, the losses of rows and the gradients.
  void run_again(const InputIntegers& inputs, const std::array<std::int64_t, 4>& outputs,
                 std::int64_t workspace) const {
    check_workspace(workspace, 64);
    msk::Problem problem = moved(inputs, outputs[2], outputs[3]);
    problem.total_loss = pointer<void>(outputs[0]);
    problem.row_loss = pointer<void>(outputs[1]);
    solve(problem, workspace);
  }

 private:
  // What comes after would be of a workspace that was cut for something else.
  void check_unplanned(const std::string& name) const {
    if (planned_)
      throw std::invalid_argument(name +
                                  ": expected a call that is not planned yet, got one that is");
  }
  void solve(msk::Problem& problem, std::int64_t workspace) const {
    problem.workspace = pointer<std::byte>(workspace);
    prefer_huge_pages(problem.workspace, problem.workspace_bytes);
    build_.solve(problem);
  }

  msk::Kernels build_ = kernels();
};

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.def("instruction_set", [] { return kernels().instruction_set; });
  m.def("instruction_sets", &instruction_sets);
  m.def("use_instruction_set", &use_instruction_set, py::arg("name"));

  m.def(
      "row_loss",
      [](msk::DType dtype, const msk::SpecNumbers& spec, const msk::StatisticsIntegers& statistics,
         std::int64_t out, std::int64_t count) {
        msk::TermIntegers all{};
        std::copy(statistics.begin(), statistics.end(), all.begin());
        kernels().row_loss(dtype, msk::rules_of(spec), msk::term(all), pointer<void>(out), count);
      },
      py::arg("dtype"), py::arg("spec"), py::arg("statistics"), py::arg("out"), py::arg("count"));
  m.def(
      "exp",
      [](msk::DType dtype, std::int64_t in, std::int64_t out, std::int64_t count) {
        kernels().exp(dtype, pointer(in), pointer<void>(out), count);
      },
      py::arg("dtype"), py::arg("from_address"), py::arg("to_address"), py::arg("count"));

  msk::bind_call<Call>(m)
      .def(py::init<msk::Job, msk::DType, std::int64_t, const SideIntegers&,
                    const std::optional<SideIntegers>&, const msk::SpecNumbers&>(),
           py::arg("job"), py::arg("dtype"), py::arg("depth"), py::arg("rows"), py::arg("columns"),
           py::arg("spec"))
      .def("read_columns_as", &Call::read_columns_as, py::arg("dtype"))
      .def("read_known", &Call::read_known, py::arg("known"))
      .def("add_weight_sums", &Call::add_weight_sums, py::arg("sums"))
      .def("anchor_both", &Call::anchor_both)
      .def("write_total", &Call::write_total, py::arg("total_loss"), py::arg("scale"))
      .def("plan", &Call::plan, py::arg("threads"), py::arg("budget"))
      .def("run", &Call::run, py::arg("workspace"), py::call_guard<py::gil_scoped_release>())
      .def("run_again", &Call::run_again, py::arg("inputs"), py::arg("outputs"),
           py::arg("workspace"), py::call_guard<py::gil_scoped_release>());
}
