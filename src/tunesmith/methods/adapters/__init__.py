"""Which weights learn; a file in this package adds a member."""

from tunesmith.base import load_members

from .base import Adapter, trainable

load_members(__name__, __path__)

__all__ = ["Adapter", "trainable"]
