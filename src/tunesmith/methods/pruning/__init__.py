"""How weights are taken away; a file in this package adds a member."""

from tunesmith.base import load_members

from .base import Pruning

load_members(__name__, __path__)

__all__ = ["Pruning"]
