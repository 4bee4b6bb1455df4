"""Measurements: speed side by side with the obvious way, and references that need no training."""
