"""Measurements; so far the popularity ranking, a reference that needs no training."""
