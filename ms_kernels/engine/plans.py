"""Plans of reduced losses, kept beside the calls that they are of."""

from collections.abc import Hashable
from types import ModuleType

import torch

from ms_kernels.backends.interface import ReducedPlan, Side
from ms_kernels.rules.spec import PairSpec

Plans = dict[Hashable, ReducedPlan | None]
# Of one call, as precision, threads and budgets change.
MOST_KEPT = 32


def plan_of(
    plans: Plans,
    module: ModuleType,
    sides: tuple[Side, Side | None],
    spec: PairSpec,
    how: tuple[str, torch.dtype, bool, bool],
) -> ReducedPlan | None:
    """Of that backend, made when it is first asked for; None where it makes none.

    how: the reduction, the dtype of the loss, whether dx and dr are needed.
    """
    if not hasattr(module, "plan_reduced"):
        return None
    key = module, *how, module.plans_depend_on()
    if key in plans:
        return plans.get(key)  # None too if another thread has cleared them meanwhile
    if len(plans) >= MOST_KEPT:
        plans.clear()
    plan: ReducedPlan | None = module.plan_reduced(*sides, spec, *how)
    plans[key] = plan
    return plan
