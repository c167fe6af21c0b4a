"""mellm: micro-expressions read from motion, by a multimodal language model.

Importing the package is cheap: `explain` and `Study` are loaded when they are first asked for (PEP 562),
and torch and transformers only when a model is first needed.
"""
__version__ = "0.1.0"

_LAZY = {"explain": "mellm.explainer", "Explanation": "mellm.explainer", "Study": "mellm.study", "StudyError": "mellm.study"}
__all__ = [*_LAZY, "__version__"]


def __getattr__(name):
    "Load the public names on first use."
    if name not in _LAZY:
        raise AttributeError(f"module 'mellm' has no attribute {name!r}")
    from importlib import import_module
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_LAZY})
