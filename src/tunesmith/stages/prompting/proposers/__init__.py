"""Proposers: who thinks of other instructions for a prompt."""

from tunesmith.base import load_members

from .base import Proposer, Situation, Trial

load_members(__name__, __path__)

__all__ = ["Proposer", "Situation", "Trial"]
