"""Ranking by generation: a trie of the catalogue's titles, beam search and exact search under it. Knows no model by name."""

from recbole_flr.decoding.beam import beam_search, item_scores
from recbole_flr.decoding.exact import exact_search
from recbole_flr.decoding.scoring import Beams, PrefixScorer
from recbole_flr.decoding.trie import Trie

__all__ = ["Beams", "PrefixScorer", "Trie", "beam_search", "exact_search", "item_scores"]
