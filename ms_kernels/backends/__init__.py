"""What runs the losses: cuda, cpu, triton and panels, as interface.py says.

Called, `ms_kernels.backends()` tells which of them are there, and why others are not.
"""

import sys
from types import ModuleType

from ms_kernels.backends import dispatch


class _Backends(ModuleType):
    def __call__(self) -> dict[str, dispatch.Availability]:
        """What is there, what is not and why.

        >>> ms_kernels.backends()["cpu"].available
        True
        """
        return dispatch.backends()


# One name is the package and the function: a function alone would hide the modules.
sys.modules[__name__].__class__ = _Backends
