# The CUDA module. Kernels are a target of their own: no flag meant for g++ or pybind11 reaches nvcc.

# Cubins of every architecture that nvcc 13.0 serves and PTX for those to come. For development one
# is enough: -DCMAKE_CUDA_ARCHITECTURES=90-real.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90-real 100-real 100-virtual)
endif()
set(CMAKE_CUDA_COMPILER "${MSK_NVCC}")
enable_language(CUDA)

set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)

file(GLOB MSK_CUDA_INSTANCES CONFIGURE_DEPENDS csrc/cuda/*.cu)
add_library(msk_cuda_kernels OBJECT ${MSK_CUDA_INSTANCES})
target_include_directories(msk_cuda_kernels PRIVATE csrc)
set_target_properties(msk_cuda_kernels PROPERTIES CUDA_RUNTIME_LIBRARY Static
                                                  CUDA_VISIBILITY_PRESET hidden)

pybind11_add_module(_cuda MODULE NO_EXTRAS csrc/module_cuda.cpp csrc/cuda/plan.cpp
                    csrc/cuda/plan_tiled.cpp csrc/cuda/launch.cpp)
target_include_directories(_cuda PRIVATE csrc)
target_compile_options(_cuda PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-O3;-Wall;-Wextra>)
list(JOIN CMAKE_CUDA_ARCHITECTURES "," built_for)  # a semicolon would end the definition
target_compile_definitions(_cuda PRIVATE MSK_CUDA_ARCHITECTURES="${built_for}")
target_link_libraries(_cuda PRIVATE msk_cuda_kernels)
set_target_properties(_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static
                                       LIBRARY_OUTPUT_DIRECTORY "${MSK_OUTPUT}")
