// Python module of the CUDA backend: addresses and a stream in, work queued. It knows nothing of
// torch.
#include <algorithm>

#include "cuda/core/geometry.h"
#include "cuda/host/plan.h"
#include "module_call.h"

namespace py = pybind11;

namespace {

using namespace msk::gpu;
using msk::DType;
using msk::InputIntegers;
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
       bool by_tiles, bool small)
      : ModuleCall(job, dtype, depth, side(rows),
                   columns ? std::optional(side(*columns)) : std::nullopt, spec) {
    problem_.family = !problem_.rules.is_multi_similarity();
    if (problem_.family && by_tiles)
      throw std::invalid_argument("by_tiles: expected False but of the MS loss, got True");
    problem_.precision = precision;
    problem_.tiled.skip_below = skip_below;
    problem_.by_tiles = by_tiles;
    if (small) be_small();
  }

  // Of a ranked loss: which of its class each candidate is, and how many the largest class has.
  void read_ordinals(std::int64_t ordinals, std::int64_t most_ranks) {
    problem_.ordinals = pointer<const std::int64_t>(ordinals);
    problem_.most_ranks = pointer<const std::int64_t>(most_ranks);
  }
  // Values of the weighting rule's options, in the compute type: those of the spec mean nothing
  // then.
  void read_options(std::int64_t values, int count) {
    if (problem_.is_small)
      throw std::invalid_argument("read_options: expected a call with small=False, got True");
    if (!values || count < 1 || count > kMostOptions)
      throw std::invalid_argument("read_options: expected up to " + std::to_string(kMostOptions) +
                                  " values, got " + std::to_string(count));
    if (problem_.by_tiles && problem_.job == Job::loss_and_gradient)
      throw std::invalid_argument(
          "read_options: expected statistics or a gradient by tiles, got loss_and_gradient, whose "
          "bounds of tiles are those of numbers");
    problem_.option_values = pointer(values);
    problem_.option_count = count;
  }
  // Where they learn, of a gradient: what the weights of pairs add up to, four numbers.
  void write_weight_sums(std::int64_t out) {
    if (problem_.job != Job::gradient || !problem_.option_values)
      throw std::invalid_argument(
          "write_weight_sums: expected a gradient, and a call of read_options() before");
    problem_.weight_sums = pointer<void>(out);
  }
  // Of the small path: one number instead of the losses of rows, in the embeddings' type or, wide,
  // in the compute type. `factor`: of mean_valid, what gradients are still to be multiplied by.
  void write_reduced(std::int64_t loss, bool wide, std::int64_t factor, Reduction reduction) {
    if (!problem_.is_small)
      throw std::invalid_argument("write_reduced: expected a call with small=True, got False");
    problem_.small.loss = pointer<void>(loss);
    problem_.small.wide = wide;
    problem_.small.factor = pointer<void>(factor);
    problem_.small.reduction = reduction;
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
  // Of a reduced call that was planned: outputs are the loss, the factor and the gradients.
  void run_again(const InputIntegers& inputs, const std::array<std::int64_t, 4>& outputs,
                 std::int64_t workspace, int device, std::int64_t stream) const {
    check_workspace(workspace, 16);
    if (!problem_.is_small)
      throw std::invalid_argument("run_again: expected a call with small=True, got False");
    Problem problem = moved(inputs, outputs[2], outputs[3]);
    problem.small.loss = pointer<void>(outputs[0]);
    problem.small.factor = pointer<void>(outputs[1]);
    place(problem, pointer<std::byte>(workspace), budget_);
    launch(problem, device, pointer<void>(stream));
  }

 private:
  void be_small() {
    const std::int64_t largest = std::max(problem_.rows.count, problem_.columns.count);
    const int most = small_rows(problem_.dtype == DType::float64 ? 8 : 4);
    if (largest > most || problem_.by_tiles || problem_.job != Job::loss_and_gradient ||
        problem_.rules.weighting == msk::WeightingRule::triplet)
      throw std::invalid_argument("small: expected False but of loss_and_gradient of up to " +
                                  std::to_string(most) +
                                  " rows, neither by tiles nor of the triplet loss, got True");
    problem_.is_small = true;
  }

  std::int64_t budget_ = 0;
};

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.attr("architectures") = MSK_CUDA_ARCHITECTURES;  // as CMake names them

  py::enum_<Precision>(m, "Precision", py::module_local())
      .value("highest", Precision::highest)
      .value("high", Precision::high)
      .value("medium", Precision::medium);

  py::enum_<Reduction>(m, "Reduction", py::module_local())
      .value("sum", Reduction::sum)
      .value("mean", Reduction::mean)
      .value("mean_valid", Reduction::mean_valid);

  m.def("versions", &versions);

  // small: the pairs of up to small_rows() rows on either side are held at once.
  // by_tiles: labels ascend, and with the ids they are in the order that is given, int64.
  msk::bind_call<Call>(m)
      .def(py::init<Job, DType, Precision, std::int64_t, const SideIntegers&,
                    const std::optional<SideIntegers>&, const msk::SpecNumbers&, double, bool,
                    bool>(),
           py::arg("job"), py::arg("dtype"), py::arg("precision"), py::arg("depth"),
           py::arg("rows"), py::arg("columns"), py::arg("spec"), py::arg("skip_below"),
           py::arg("by_tiles"), py::arg("small") = false)
      .def("write_reduced", &Call::write_reduced, py::arg("loss"), py::arg("wide"),
           py::arg("factor"), py::arg("reduction"))
      .def("read_ordinals", &Call::read_ordinals, py::arg("ordinals"), py::arg("most_ranks"))
      .def("read_options", &Call::read_options, py::arg("values"), py::arg("count"))
      .def("write_weight_sums", &Call::write_weight_sums, py::arg("out"))
      .def("plan", &Call::plan, py::arg("budget"))
      .def("run", &Call::run, py::arg("workspace"), py::arg("device"), py::arg("stream"),
           py::call_guard<py::gil_scoped_release>())
      .def("run_again", &Call::run_again, py::arg("inputs"), py::arg("outputs"),
           py::arg("workspace"), py::arg("device"), py::arg("stream"),
           py::call_guard<py::gil_scoped_release>());
}
