"""Fused operations, each with a plain torch reference beside it."""
