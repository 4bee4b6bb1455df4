"""recbole_flr: language models that reason in latent space, as RecBole models.

The public names are imported on first use, so that `import recbole_flr` (and the dataset scripts) do not load torch.
"""

__version__ = "0.1.0"
__all__ = ["Config", "load_data_and_model", "recommend", "run_recbole_flr"]


def __getattr__(name):
    if name == "Config":
        from recbole_flr.config import Config

        return Config
    if name in __all__:
        from recbole_flr import quick_start

        return getattr(quick_start, name)
    raise AttributeError(f"module 'recbole_flr' has no attribute '{name}'")
