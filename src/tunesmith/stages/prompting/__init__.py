"""Prompting: how far the model gets untuned, with the best prompt that can be found for it without the test rows."""

from .settings import Prompt
from .stage import STAGE, check

__all__ = ["STAGE", "Prompt", "check"]
