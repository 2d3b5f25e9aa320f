// Python module of the CUDA backend: addresses and a stream in, work queued. It knows nothing of
// torch.
#include "cuda/host/plan.h"
#include "module_call.h"

namespace py = pybind11;

namespace {

using namespace msk::gpu;
using msk::DType;
using msk::Job;
using msk::pointer;

// (embeddings, row stride, count, labels, ids, order)
using SideIntegers = std::array<std::int64_t, 6>;

SideInput side(const SideIntegers& a) {
  msk::check_count(a[2]);
  return {pointer(a[0]),
          a[1],
          a[2],
          pointer<const std::int64_t>(a[3]),
          pointer<const std::int64_t>(a[4]),
          pointer<const std::int64_t>(a[5])};
}

// One call: built from addresses, it names the workspace it needs; the caller allocates that.
class Call : public msk::ModuleCall<Problem> {
 public:
  Call(Job job, DType dtype, Precision precision, std::int64_t depth, const SideIntegers& rows,
       const std::optional<SideIntegers>& columns, const msk::SpecNumbers& spec, double skip_below,
       bool by_tiles)
      : ModuleCall(job, dtype, depth, side(rows),
                   columns ? std::optional(side(*columns)) : std::nullopt, spec) {
    problem_.family = !problem_.rules.is_multi_similarity();
    if (problem_.family && by_tiles)
      throw std::invalid_argument("by_tiles: expected False but of the MS loss, got True");
    problem_.precision = precision;
    problem_.tiled.skip_below = skip_below;
    problem_.by_tiles = by_tiles;
  }

  // Of a ranked loss: which of its class each candidate is, and how many the largest class has.
  void read_ordinals(std::int64_t ordinals, std::int64_t most_ranks) {
    problem_.ordinals = pointer<const std::int64_t>(ordinals);
    problem_.most_ranks = pointer<const std::int64_t>(most_ranks);
  }
  std::int64_t plan(std::int64_t budget) {
    budget_ = budget;
    planned_ = true;
    return msk::gpu::plan(problem_, budget);
  }
  void run(std::int64_t workspace, int device, std::int64_t stream) {
    check_workspace(workspace, 16);
    if (problem_.ranked && !problem_.most_ranks)
      throw std::invalid_argument("run: expected a call of read_ordinals() before, got none");
    place(problem_, pointer<std::byte>(workspace), budget_);
    launch(problem_, device, pointer<void>(stream));
  }

 private:
  std::int64_t budget_ = 0;
};

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.attr("architectures") = MSK_CUDA_ARCHITECTURES;  // as CMake names them

  py::enum_<Precision>(m, "Precision", py::module_local())
      .value("highest", Precision::highest)
      .value("high", Precision::high)
      .value("medium", Precision::medium);

  m.def("versions", &versions);

  // by_tiles: labels ascend, and with the ids they are in the order that is given, int64.
  msk::bind_call<Call>(m)
      .def(py::init<Job, DType, Precision, std::int64_t, const SideIntegers&,
                    const std::optional<SideIntegers>&, const msk::SpecNumbers&, double, bool>(),
           py::arg("job"), py::arg("dtype"), py::arg("precision"), py::arg("depth"),
           py::arg("rows"), py::arg("columns"), py::arg("spec"), py::arg("skip_below"),
           py::arg("by_tiles"))
      .def("read_ordinals", &Call::read_ordinals, py::arg("ordinals"), py::arg("most_ranks"))
      .def("plan", &Call::plan, py::arg("budget"))
      .def("run", &Call::run, py::arg("workspace"), py::arg("device"), py::arg("stream"),
           py::call_guard<py::gil_scoped_release>());
}
