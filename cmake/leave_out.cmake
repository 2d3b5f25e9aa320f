# What a failure of the CUDA part does: under MSK_CUDA=ON it ends the build, under AUTO it is a warning
# and the CPU module is built. MSK_CUDA_MODULE is where the CUDA module would have been.
function(msk_leave_out reason)
  if(MSK_CUDA STREQUAL "ON")
    message(FATAL_ERROR "MSK_CUDA=ON, but ${reason}")
  endif()
  # One that an earlier build left would not fit the Python code of this one.
  file(REMOVE "${MSK_CUDA_MODULE}")
  message(WARNING "The CUDA kernels are left out, the rest is built: ${reason}. Then build again; \
MSK_CUDA=ON makes this an error, MSK_CUDA=OFF says that they are not wanted.")
endfunction()
