// What the Python classes Call of both modules share: addresses become pointers of a problem.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "call.h"
#include "rules/rules.h"

namespace msk {

// The seven statistics of each row, in the order of Python's RowStatistics; a term has the gradient
// of the row losses besides. Address 0 stands for what is absent.
using StatisticsIntegers = std::array<std::int64_t, 7>;
using TermIntegers = std::array<std::int64_t, 8>;
// ((weighting rule, mining rule, normalize, distance), (the weighting's three options, the mining's
// two, max_positive_similarity)): see rules/rules.h and call.h. pybind11 takes no float for an int.
using SpecNumbers = std::pair<std::array<int, 4>, std::array<double, 6>>;

// Of both sides: embeddings, labels, ids.
using InputIntegers = std::array<std::int64_t, 6>;

template <typename P = const void>
P* pointer(std::int64_t address) {
  return reinterpret_cast<P*>(static_cast<std::intptr_t>(address));
}

inline void check_count(std::int64_t count) {
  if (count < 0 || count > std::numeric_limits<std::int32_t>::max() - 1024)
    throw std::invalid_argument("embeddings: expected fewer than 2^31 - 1024 rows, got " +
                                std::to_string(count));
}

inline TermInput term(const std::optional<TermIntegers>& given) {
  if (!given) return {};
  const TermIntegers& a = *given;
  const auto count = [&](int k) { return pointer<const std::int64_t>(a[k]); };
  return {pointer(a[0]), pointer(a[1]), pointer(a[2]), pointer(a[3]),
          count(4),      count(5),      pointer(a[6]), pointer(a[7])};
}

inline Options options_of(const SpecNumbers& spec) {
  const int distance = spec.first[3];
  if (!(distance >= 0 && distance < int(Distance::count)))
    throw std::invalid_argument("distance: expected a code that exists, got " +
                                std::to_string(distance));
  return {spec.second[5], spec.first[2] != 0, Distance(distance)};
}

inline Rules rules_of(const SpecNumbers& spec) {
  const int weighting = spec.first[0], mining = spec.first[1];
  const std::array<double, 6>& of = spec.second;
  if (!(weighting >= 0 && weighting < int(WeightingRule::count) && mining >= 0 &&
        mining < int(MiningRule::count)))
    throw std::invalid_argument("rules: expected codes that exist, got " +
                                std::to_string(weighting) + " and " + std::to_string(mining));
  return {WeightingRule(weighting), {of[0], of[1], of[2]}, MiningRule(mining), {of[3], of[4]}};
}

template <class Problem>
class ModuleCall {
 public:
  void read_dloss(std::int64_t dloss) { problem_.dloss = pointer(dloss); }
  void write_statistics(const StatisticsIntegers& out) {
    problem_.statistics = {pointer<void>(out[0]),         pointer<void>(out[1]),
                           pointer<void>(out[2]),         pointer<void>(out[3]),
                           pointer<std::int64_t>(out[4]), pointer<std::int64_t>(out[5]),
                           pointer<void>(out[6])};
  }
  void write_loss(std::int64_t row_loss, std::int64_t kept) {
    problem_.row_loss = pointer<void>(row_loss);
    problem_.kept = pointer<std::int64_t>(kept);
  }
  void read_terms(const std::optional<TermIntegers>& row_term,
                  const std::optional<TermIntegers>& column_term) {
    if (problem_.rules.weighting == WeightingRule::triplet)
      throw std::invalid_argument(
          "read_terms: expected a loss whose rows are known by their statistics, got the triplet "
          "loss, which lists pairs; use loss_and_gradient with dloss");
    problem_.row_term = term(row_term);
    problem_.column_term = term(column_term);
  }
  void write_gradients(std::int64_t d_rows, std::int64_t d_columns) {
    problem_.d_rows = pointer<void>(d_rows);
    problem_.d_columns = pointer<void>(d_columns);
  }

 protected:
  using Side = decltype(Problem::rows);

  ModuleCall(Job job, DType dtype, std::int64_t depth, const Side& rows,
             const std::optional<Side>& columns, const SpecNumbers& spec) {
    problem_.job = job;
    problem_.dtype = dtype;
    problem_.depth = depth;
    problem_.rows = rows;
    problem_.self = !columns;
    if (columns) problem_.columns = *columns;
    problem_.options = options_of(spec);
    problem_.rules = rules_of(spec);
  }

  // The problem of tensors of the same shapes that lie elsewhere. This one stays as it is, so that
  // several threads may ask at once.
  Problem moved(const InputIntegers& in, std::int64_t d_rows, std::int64_t d_columns) const {
    const auto move = [&in](Side& side, int from) {
      side.x = pointer(in[from]);
      side.labels = pointer<const std::int64_t>(in[from + 1]);
      side.ids = pointer<const std::int64_t>(in[from + 2]);
    };
    Problem problem = problem_;
    move(problem.rows, 0);
    if (!problem.self) move(problem.columns, 3);
    problem.d_rows = pointer<void>(d_rows);
    problem.d_columns = pointer<void>(d_columns);
    return problem;
  }

  // Before any work: a workspace of another plan, or of none, would be written past its end.
  void check_workspace(std::int64_t workspace, int alignment) const {
    if (!planned_) throw std::invalid_argument("run: expected a call of plan() before, got none");
    if (!workspace && problem_.workspace_bytes)
      throw std::invalid_argument("workspace: expected the address of " +
                                  std::to_string(problem_.workspace_bytes) + " bytes, got 0");
    if (workspace % alignment != 0)
      throw std::invalid_argument("workspace: expected an address that is a multiple of " +
                                  std::to_string(alignment));
  }

  Problem problem_{};
  bool planned_ = false;
};

// The enumerations, and what a Call takes besides its own. module_local: the tests load several
// builds into one process.
template <class Call>
pybind11::class_<Call> bind_call(pybind11::module_& m) {
  namespace py = pybind11;
  py::enum_<DType>(m, "DType", py::module_local())
      .value("float16", DType::float16)
      .value("bfloat16", DType::bfloat16)
      .value("float32", DType::float32)
      .value("float64", DType::float64);
  py::enum_<Job>(m, "Job", py::module_local())
      .value("statistics", Job::statistics)
      .value("gradient", Job::gradient)
      .value("loss_and_gradient", Job::loss_and_gradient);
  return py::class_<Call>(m, "Call", py::module_local())
      .def("write_statistics", &Call::write_statistics, py::arg("out"))
      .def("write_loss", &Call::write_loss, py::arg("row_loss"), py::arg("kept"))
      .def("read_dloss", &Call::read_dloss, py::arg("dloss"))
      .def("read_terms", &Call::read_terms, py::arg("row_term"), py::arg("column_term"))
      .def("write_gradients", &Call::write_gradients, py::arg("d_rows"), py::arg("d_columns"));
}

}  // namespace msk
