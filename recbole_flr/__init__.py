"""recbole_flr: language models that reason in latent space, as RecBole models.

The public names are imported on first use, so that `import recbole_flr` (and the dataset scripts) do not load torch.
"""

from importlib import import_module

__version__ = "0.1.0"
_PLACES = {  # public name -> module
    "Config": "config", "load_data_and_model": "quick_start", "recommend": "recommendation",
    "recommend_many": "bulk_recommendation", "run_recbole_flr": "quick_start", "run_search": "search",
}
__all__ = list(_PLACES)


def __getattr__(name):
    if name in _PLACES:
        return getattr(import_module(f"recbole_flr.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'recbole_flr' has no attribute '{name}'")
