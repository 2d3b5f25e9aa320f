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

#include "call.h"
#include "rules/rules.h"

namespace msk {

// A term is (hardest_positive, hardest_negative, pos_lse, neg_lse, dloss), options are (alpha,
// beta, base, epsilon, max_positive_similarity, normalize); address 0 stands for what is absent.
using TermIntegers = std::array<std::int64_t, 5>;
using OptionNumbers = std::array<double, 6>;

template <typename P = const void>
P* pointer(std::int64_t address) {
  return reinterpret_cast<P*>(static_cast<std::intptr_t>(address));
}

inline void check_count(std::int64_t count) {
  if (count < 0 || count > std::numeric_limits<std::int32_t>::max() - 1024)
    throw std::invalid_argument("embeddings: expected fewer than 2^31 - 1024 rows, got " +
                                std::to_string(count));
}

inline TermInput term(const std::optional<TermIntegers>& a) {
  if (!a) return {};
  return {pointer((*a)[0]), pointer((*a)[1]), pointer((*a)[2]), pointer((*a)[3]), pointer((*a)[4])};
}

inline Options options_from(const OptionNumbers& o) {
  return {o[0], o[1], o[2], o[3], o[4], o[5] != 0};
}

// (weighting rule, its three options, mining rule, its two options): see rules/rules.h
using RuleNumbers = std::array<double, 7>;

inline Rules rules_of(const Options& options, const std::optional<RuleNumbers>& given) {
  if (!given) {
    const bool mined = options.epsilon != std::numeric_limits<double>::infinity();
    return {WeightingRule::multi_similarity,
            {options.alpha, options.beta, options.base},
            mined ? MiningRule::multi_similarity : MiningRule::none,
            {options.epsilon, 0}};
  }
  const RuleNumbers& r = *given;
  if (!(r[0] >= 0 && r[0] < double(WeightingRule::count) && r[4] >= 0 &&
        r[4] < double(MiningRule::count)))
    throw std::invalid_argument("rules: expected codes that exist, got " + std::to_string(r[0]) +
                                " and " + std::to_string(r[4]));
  return {WeightingRule(int(r[0])), {r[1], r[2], r[3]}, MiningRule(int(r[4])), {r[5], r[6]}};
}

template <class Problem>
class ModuleCall {
 public:
  void read_dloss(std::int64_t dloss) { problem_.dloss = pointer(dloss); }
  void write_statistics(const std::array<std::int64_t, 6>& out) {
    problem_.statistics = {pointer<void>(out[0]),         pointer<void>(out[1]),
                           pointer<void>(out[2]),         pointer<void>(out[3]),
                           pointer<std::int64_t>(out[4]), pointer<std::int64_t>(out[5])};
  }
  void write_loss(std::int64_t row_loss, std::int64_t kept) {
    problem_.row_loss = pointer<void>(row_loss);
    problem_.kept = pointer<std::int64_t>(kept);
  }
  void read_terms(const std::optional<TermIntegers>& row_term,
                  const std::optional<TermIntegers>& column_term) {
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
             const std::optional<Side>& columns, const OptionNumbers& options,
             const std::optional<RuleNumbers>& rules) {
    problem_.job = job;
    problem_.dtype = dtype;
    problem_.depth = depth;
    problem_.rows = rows;
    problem_.self = !columns;
    if (columns) problem_.columns = *columns;
    problem_.options = options_from(options);
    problem_.rules = rules_of(problem_.options, rules);
  }

  Problem problem_{};
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
