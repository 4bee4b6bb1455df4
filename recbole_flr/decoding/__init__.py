"""Ranking by generation: a trie of the catalogue's titles, and beam search under it. Knows no model by name."""

from recbole_flr.decoding.beam import Beams, PrefixScorer, beam_search, item_scores
from recbole_flr.decoding.trie import Trie

__all__ = ["Beams", "PrefixScorer", "Trie", "beam_search", "item_scores"]
