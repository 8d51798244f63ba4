"""Graders, baselines and the statistics that turn answers on held-out rows into figures one can trust."""

from tunesmith.base import load_members

from .base import HEADLINE, AnswerGrader, Grader, Likelihood, Paying, Score
from .statistics import Difference, Figure, Interval

load_members(__name__, __path__)

__all__ = ["HEADLINE", "AnswerGrader", "Difference", "Figure", "Grader", "Interval", "Likelihood", "Paying", "Score"]
