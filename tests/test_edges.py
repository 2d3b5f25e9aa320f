"""Each degenerate batch has one answer, on every backend; layout and label type do not matter."""

from edge_inputs import *  # noqa: F403
from edges import *  # noqa: F403  they serve the CUDA kernels too: see test_host_gpu.py
