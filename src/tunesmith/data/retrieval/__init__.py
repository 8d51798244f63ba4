"""Retrievers: the texts among many that are most like a question."""

from tunesmith.base import load_members

from .base import Index, Retriever, nearest

load_members(__name__, __path__)

__all__ = ["Index", "Retriever", "nearest"]
