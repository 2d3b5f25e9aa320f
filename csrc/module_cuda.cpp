// Python module of the CUDA backend: addresses and a stream in, work queued. It knows nothing of
// torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>

#include "cuda/plan.h"

namespace py = pybind11;

namespace {

using namespace msk::gpu;
using Integers = std::array<std::int64_t, 5>;
using SideIntegers = std::array<std::int64_t, 6>;

template <typename P = const void>
P* pointer(std::int64_t address) {
  return reinterpret_cast<P*>(static_cast<std::intptr_t>(address));
}

SideInput side(const SideIntegers& a) {
  if (a[2] < 0 || a[2] > std::numeric_limits<std::int32_t>::max() - 1024)
    throw std::invalid_argument("embeddings: expected fewer than 2^31 - 1024 rows, got " +
                                std::to_string(a[2]));
  return {pointer(a[0]),
          a[1],
          a[2],
          pointer<const std::int64_t>(a[3]),
          pointer<const std::int64_t>(a[4]),
          pointer<const std::int64_t>(a[5])};
}

TermInput term(const std::optional<Integers>& a) {
  if (!a) return {};
  return {pointer((*a)[0]), pointer((*a)[1]), pointer((*a)[2]), pointer((*a)[3]), pointer((*a)[4])};
}

// One call: built from addresses, it names the workspace it needs; the caller allocates that.
class Call {
 public:
  Call(Job job, DType dtype, Precision precision, std::int64_t depth, const SideIntegers& rows,
       const std::optional<SideIntegers>& columns, const std::array<double, 7>& options,
       bool by_tiles) {
    problem_.job = job;
    problem_.dtype = dtype;
    problem_.precision = precision;
    problem_.depth = depth;
    problem_.rows = side(rows);
    problem_.self = !columns;
    if (columns) problem_.columns = side(*columns);
    problem_.options = {options[0], options[1], options[2],
                        options[3], options[4], options[5] != 0};
    problem_.tiled.skip_below = options[6];
    problem_.by_tiles = by_tiles;
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

  std::int64_t plan(std::int64_t budget) {
    budget_ = budget;
    return msk::gpu::plan(problem_, budget);
  }
  void run(std::int64_t workspace, int device, std::int64_t stream) {
    if (workspace % 16 != 0)
      throw std::invalid_argument("workspace: expected an address that is a multiple of 16");
    place(problem_, pointer<std::byte>(workspace), budget_);
    launch(problem_, device, pointer<void>(stream));
  }

 private:
  Problem problem_{};
  std::int64_t budget_ = 0;
};

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.attr("architectures") = MSK_CUDA_ARCHITECTURES;  // as CMake names them

  // module_local: the tests load several builds into one process.
  py::enum_<DType>(m, "DType", py::module_local())
      .value("float16", DType::float16)
      .value("bfloat16", DType::bfloat16)
      .value("float32", DType::float32)
      .value("float64", DType::float64);
  py::enum_<Job>(m, "Job", py::module_local())
      .value("statistics", Job::statistics)
      .value("gradient", Job::gradient)
      .value("loss_and_gradient", Job::loss_and_gradient);
  py::enum_<Precision>(m, "Precision", py::module_local())
      .value("highest", Precision::highest)
      .value("high", Precision::high)
      .value("medium", Precision::medium);

  // Addresses are integers, 0 for what is absent. A side is (embeddings, row stride, count, labels,
  // ids, order), a term (hardest_positive, hardest_negative, pos_lse, neg_lse, dloss); options are
  // (alpha, beta, base, epsilon, max_positive_similarity, normalize, skip_below). by_tiles: labels
  // ascend, and with the ids they are in the order that is given, int64.
  py::class_<Call>(m, "Call", py::module_local())
      .def(py::init<Job, DType, Precision, std::int64_t, const SideIntegers&,
                    const std::optional<SideIntegers>&, const std::array<double, 7>&, bool>(),
           py::arg("job"), py::arg("dtype"), py::arg("precision"), py::arg("depth"),
           py::arg("rows"), py::arg("columns"), py::arg("options"), py::arg("by_tiles"))
      .def("write_statistics", &Call::write_statistics, py::arg("out"))
      .def("write_loss", &Call::write_loss, py::arg("row_loss"), py::arg("kept"))
      .def("read_terms", &Call::read_terms, py::arg("row_term"), py::arg("column_term"))
      .def("write_gradients", &Call::write_gradients, py::arg("d_rows"), py::arg("d_columns"))
      .def("plan", &Call::plan, py::arg("budget"))
      .def("run", &Call::run, py::arg("workspace"), py::arg("device"), py::arg("stream"),
           py::call_guard<py::gil_scoped_release>());
}
