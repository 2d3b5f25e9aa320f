"""Classes of other libraries, computed by the kernels of this one."""
