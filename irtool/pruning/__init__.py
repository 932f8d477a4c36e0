"""Planning: criteria, allocation, the plan, and the proven rewrite it stands for."""

from irtool.pruning.criteria import data_criteria as _data_criteria  # noqa: F401 - registers its criteria
from irtool.pruning.criteria import weight_criteria as _weight_criteria  # noqa: F401 - the same
from irtool.pruning.criteria.criteria import CRITERIA, criterion
from irtool.pruning.planner import LayerPlan, Plan, plan

__all__ = ["CRITERIA", "LayerPlan", "Plan", "criterion", "plan"]
