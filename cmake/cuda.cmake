# The CUDA module, in a build of its own: CMake cannot catch that nvcc, its host compiler or a kernel
# fails within a project, and the CPU module must come out all the same.
include(cmake/leave_out.cmake)
include(cmake/nvcc.cmake)

set(MSK_CUDA_MODULE "${MSK_OUTPUT}/_cuda${PYTHON_MODULE_EXTENSION}")
set(MSK_CUDA_BUILD "${CMAKE_BINARY_DIR}/cuda")

function(msk_add_cuda)
  msk_find_nvcc(nvcc /usr/local/cuda/bin /opt/cuda/bin)
  if(NOT nvcc AND MSK_CUDA STREQUAL "AUTO" AND "$ENV{CUDACXX}${CMAKE_CUDA_COMPILER}" STREQUAL "")
    message(STATUS "Without CUDA kernels: ${nvcc_note}")
    return()
  elseif(NOT nvcc)
    msk_leave_out("${nvcc_note}; name an nvcc, CUDACXX=/path/to/nvcc")
    return()
  endif()

  set(architectures "${CMAKE_CUDA_ARCHITECTURES}")
  if(NOT architectures)
    string(REPLACE "," ";" architectures "$ENV{CUDAARCHS}")
  endif()
  if(NOT architectures)
    msk_gpus(gpus)
    msk_architectures("${nvcc}" "${gpus}" architectures)
    if(NOT architectures)
      msk_leave_out("${architectures_note}")
      return()
    endif()
  endif()
  message(STATUS "CUDA kernels: ${nvcc}, for ${architectures}")

  msk_check_nvcc("${nvcc}" "${architectures}" passed)
  if(NOT passed)
    msk_leave_out("${nvcc} fails on a trivial kernel for ${architectures}:
${passed_note}
Name a later nvcc, CUDACXX=/path/to/nvcc, or where it refuses the host compiler an older one, \
CUDAHOSTCXX=/path/to/g++")
    return()
  endif()
  msk_configure_cuda("${nvcc}" "${architectures}" passed)
  if(NOT passed)
    msk_leave_out("CMake fails with ${nvcc}: see ${MSK_CUDA_BUILD}.log. Name another nvcc, \
CUDACXX=/path/to/nvcc")
    return()
  endif()

  msk_estimate("${architectures}" MSK_CUDA_ESTIMATE)
  set(MSK_CUDA_NVCC "${nvcc}")
  list(JOIN architectures ", " MSK_CUDA_TARGETS)
  set(script "${CMAKE_BINARY_DIR}/build_cuda.cmake")
  configure_file(cmake/build_cuda.cmake.in "${script}" @ONLY)
  set(build COMMAND "${CMAKE_COMMAND}" -P "${script}" COMMENT "Building the CUDA module"
      USES_TERMINAL VERBATIM)
  # After the CPU module: two builds at once would take the memory of two.
  add_custom_target(cuda_after_cpu ALL ${build})
  add_dependencies(cuda_after_cpu _cpu)
  add_custom_target(_cuda ${build})
endfunction()

# Compiles a trivial kernel: `out_note` is what nvcc says if it fails. CMake would keep that in a log.
function(msk_check_nvcc nvcc architectures out)
  set(flags "")
  foreach(architecture ${architectures})
    if(architecture MATCHES "^([0-9]+[af]?)(-real|-virtual)?$")
      set(code "[compute_${CMAKE_MATCH_1},sm_${CMAKE_MATCH_1}]")
      if(CMAKE_MATCH_2 STREQUAL "-real")
        set(code "sm_${CMAKE_MATCH_1}")
      elseif(CMAKE_MATCH_2 STREQUAL "-virtual")
        set(code "compute_${CMAKE_MATCH_1}")
      endif()
      list(APPEND flags "--generate-code=arch=compute_${CMAKE_MATCH_1},code=${code}")
    endif()
  endforeach()
  foreach(host "${CMAKE_CUDA_HOST_COMPILER}" "$ENV{CUDAHOSTCXX}")
    if(host)
      list(APPEND flags -ccbin "${host}")
      break()
    endif()
  endforeach()
  execute_process(
    COMMAND "${nvcc}" -std=c++17 ${flags} -c "${CMAKE_CURRENT_SOURCE_DIR}/cmake/cuda/check.cu"
            -o "${CMAKE_BINARY_DIR}/check_nvcc.o"
    RESULT_VARIABLE code OUTPUT_VARIABLE told ERROR_VARIABLE told)
  set(${out} OFF PARENT_SCOPE)
  if(code EQUAL 0)
    set(${out} ON PARENT_SCOPE)
  endif()
  string(STRIP "${told}" told)
  string(SUBSTRING "${told}" 0 600 told)
  set(${out}_note "${told}" PARENT_SCOPE)
endfunction()

# Configures the inner build, anew or again.
function(msk_configure_cuda nvcc architectures out)
  execute_process(COMMAND "${nvcc}" --version OUTPUT_VARIABLE version ERROR_QUIET)
  set(tools "${nvcc} ${version} ${CMAKE_CXX_COMPILER} ${CMAKE_CUDA_HOST_COMPILER} $ENV{CUDAHOSTCXX}")
  # CMake keeps the compiler of its first run: another one, or a failed run, starts from nothing.
  set(stamp "${MSK_CUDA_BUILD}/tools.txt")
  set(before "")
  if(EXISTS "${stamp}")
    file(READ "${stamp}" before)
  endif()
  if(NOT before STREQUAL tools)
    file(REMOVE_RECURSE "${MSK_CUDA_BUILD}")
  endif()

  set(given "")
  foreach(name CMAKE_BUILD_TYPE CMAKE_MAKE_PROGRAM CMAKE_CXX_COMPILER CMAKE_CUDA_HOST_COMPILER
               CMAKE_CUDA_FLAGS MSK_OUTPUT Python_EXECUTABLE Python_INCLUDE_DIR Python_ROOT_DIR
               PYTHON_MODULE_EXTENSION pybind11_DIR)
    if(DEFINED ${name})
      list(APPEND given "-D${name}=${${name}}")
    endif()
  endforeach()
  execute_process(
    COMMAND "${CMAKE_COMMAND}" -S "${CMAKE_CURRENT_SOURCE_DIR}/cmake/cuda" -B "${MSK_CUDA_BUILD}"
            -G "${CMAKE_GENERATOR}" "-DCMAKE_CUDA_COMPILER=${nvcc}"
            "-DCMAKE_CUDA_ARCHITECTURES=${architectures}" ${given}
    RESULT_VARIABLE code OUTPUT_VARIABLE told ERROR_VARIABLE told)
  file(WRITE "${MSK_CUDA_BUILD}.log" "${told}")
  set(${out} OFF PARENT_SCOPE)
  if(code EQUAL 0)
    file(WRITE "${stamp}" "${tools}")
    set(${out} ON PARENT_SCOPE)
  endif()
endfunction()

# How long it takes, from CPU-seconds measured with nvcc 13.0: an estimate, so that nobody gives up.
function(msk_estimate architectures out)
  list(LENGTH architectures count)
  cmake_host_system_information(RESULT cores QUERY NUMBER_OF_LOGICAL_CORES)
  math(EXPR seconds "(35 + 45 * ${count}) / ${cores} + 15")
  set(${out} "about ${seconds} s on ${cores} cores" PARENT_SCOPE)
endfunction()

msk_add_cuda()
