"""What is minimised; a file in this package adds a member."""

from tunesmith.base import load_members

from .base import Loss, Objective

load_members(__name__, __path__)

__all__ = ["Loss", "Objective"]
