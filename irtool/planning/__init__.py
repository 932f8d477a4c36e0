"""Planning: criteria, allocation, the plan, and the proven rewrite it stands for."""

from irtool.planning.criteria import CRITERIA, criterion
from irtool.planning.plan import LayerPlan, Plan, plan

__all__ = ["CRITERIA", "LayerPlan", "Plan", "criterion", "plan"]
