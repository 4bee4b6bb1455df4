"""Ranking by generation: searches for the titles that a language model finds most probable, under a trie of the catalogue.

- `trie`: the catalogue's titles as a prefix trie in flat tensors.
- `scorer`: what a search needs of a model, and the sums of log-probabilities that it asks for.
- `finished`: the titles that a search has finished, the best ones first, and the length penalty of their scores.
- `beam`: beam search.
- `exact`: a slower search that is sure to find the best titles. Import it from `recbole_flr.decoding.exact`: this package does
  not load it, because most runs use beams.
- `items`: from the titles found to scores of items.

Nothing here knows a model by name.
"""

from recbole_flr.decoding.beam import beam_search
from recbole_flr.decoding.finished import Beams
from recbole_flr.decoding.items import item_scores
from recbole_flr.decoding.scorer import PrefixScorer
from recbole_flr.decoding.trie import Trie

__all__ = ["Beams", "PrefixScorer", "Trie", "beam_search", "item_scores"]
