"""The data curve: how much data is enough, by trainings on nested parts of the rows and a curve through them."""

from .measure import data_curve
from .settings import Curve

__all__ = ["Curve", "data_curve"]
