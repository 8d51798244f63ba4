"""Which rows are learnt from where not all are to be; a file in this package adds a member."""

from tunesmith.base import load_members

from .base import Chosen, Pool, Selector

load_members(__name__, __path__)

__all__ = ["Chosen", "Pool", "Selector"]
