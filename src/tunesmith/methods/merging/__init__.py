"""How what several runs learnt becomes one; a file in this package adds a member."""

from tunesmith.base import load_members

from .base import Correction, Merging

load_members(__name__, __path__)

__all__ = ["Correction", "Merging"]
