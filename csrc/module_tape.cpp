// Python module that plays a tape: launches of a step, handed to the CUDA driver one after another.
// It is built without CUDA; the driver is whichever this process has loaded.
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace {

// Of the driver's interface, which no header of CUDA is needed for.
using Function = void*;
using LaunchKernel = int (*)(Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                             unsigned, void*, void**, void**);
using ParameterInfo = int (*)(Function, std::size_t, std::size_t*, std::size_t*);

struct Driver {
  LaunchKernel launch = nullptr;
  ParameterInfo parameter = nullptr;  // since CUDA 12.4

  Driver() {
    if (void* library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD)) {
      launch = reinterpret_cast<LaunchKernel>(dlsym(library, "cuLaunchKernel"));
      parameter = reinterpret_cast<ParameterInfo>(dlsym(library, "cuFuncGetParamInfo"));
    }
  }
};

const Driver& driver() {
  static const Driver found;
  return found;
}

// Triton's two scratch areas, which follow the parameters that it is given.
constexpr std::size_t most_scratch = 2;

// (which parameter, which base, bytes from it on)
using Address = std::tuple<std::size_t, std::size_t, std::int64_t>;

struct Launch {
  Function function;
  std::array<unsigned, 3> grid;
  unsigned threads;
  unsigned shared;
  std::vector<std::uint64_t> parameters;  // as many bytes of each as it has, the lowest first
  std::vector<Address> addresses;
};

class Tape {
 public:
  // False, and nothing is added, where the driver does not say that the kernel takes parameters of
  // just these sizes: it would read whatever lies behind them.
  bool add(std::int64_t function, const std::array<unsigned, 3>& grid, unsigned threads,
           unsigned shared, const std::vector<py::bytes>& parameters,
           const std::vector<Address>& addresses) {
    Launch launch{reinterpret_cast<Function>(function), grid, threads, shared, {}, addresses};
    std::size_t offset = 0, size = 0, count = 0;
    if (!driver().launch || !driver().parameter || !launch.function) return false;
    for (; driver().parameter(launch.function, count, &offset, &size) == 0; ++count) {
      std::uint64_t value = 0;
      const bool given = count < parameters.size();
      const std::string bytes = given ? std::string(parameters[count]) : std::string(8, '\0');
      if (bytes.size() != size || size > sizeof value) return false;
      std::memcpy(&value, bytes.data(), size);
      launch.parameters.push_back(value);
    }
    if (count < parameters.size() || count > parameters.size() + most_scratch) return false;
    for (const auto& [place, source, bytes] : addresses) {
      if (place >= parameters.size() || std::string(parameters[place]).size() != sizeof(void*))
        throw std::invalid_argument("addresses: expected places of pointers, got " +
                                    std::to_string(place));
    }
    launches_.push_back(std::move(launch));
    return true;
  }

  // How many of the launches from `begin` to before `end` the driver took, and what it said of the
  // next one, 0 for nothing.
  std::pair<std::size_t, int> play(std::size_t begin, std::size_t end,
                                   const std::vector<std::int64_t>& bases,
                                   std::int64_t stream) const {
    if (begin > end || end > launches_.size())
      throw std::out_of_range("play: expected launches of 0 to " +
                              std::to_string(launches_.size()) + ", got " + std::to_string(begin) +
                              " to " + std::to_string(end));
    const py::gil_scoped_release others_run;
    std::vector<std::uint64_t> values;
    std::vector<void*> pointers;
    for (std::size_t k = begin; k < end; ++k) {
      const Launch& launch = launches_[k];
      values = launch.parameters;
      for (const auto& [place, source, bytes] : launch.addresses) {
        if (source >= bases.size())
          throw std::out_of_range("bases: expected more than " + std::to_string(source) + ", got " +
                                  std::to_string(bases.size()));
        values[place] = static_cast<std::uint64_t>(bases[source] + bytes);
      }
      pointers.clear();
      for (std::uint64_t& value : values) pointers.push_back(&value);
      const auto [x, y, z] = launch.grid;
      const int refused =
          driver().launch(launch.function, x, y, z, launch.threads, 1, 1, launch.shared,
                          reinterpret_cast<void*>(stream), pointers.data(), nullptr);
      if (refused) return {k - begin, refused};
    }
    return {end - begin, 0};
  }

  std::size_t size() const { return launches_.size(); }

 private:
  std::vector<Launch> launches_;
};

}  // namespace

PYBIND11_MODULE(_tape, m) {
  py::class_<Tape>(m, "Tape", py::module_local())
      .def(py::init<>())
      .def("__len__", &Tape::size)
      .def("add", &Tape::add, py::arg("function"), py::arg("grid"), py::arg("threads"),
           py::arg("shared"), py::arg("parameters"), py::arg("addresses"))
      .def("play", &Tape::play, py::arg("begin"), py::arg("end"), py::arg("bases"),
           py::arg("stream"));
}
