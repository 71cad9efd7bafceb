"""What each system computes: public parameters, and `plan(key, shape)` that turns them into coefficients."""

from .dlmt import DLMT
from .plan import Plan

__all__ = ["DLMT", "Plan"]
