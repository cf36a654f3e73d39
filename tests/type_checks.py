"""Checks of the pipeline's annotations at run time, with dtypes and shapes."""

import importlib
import pkgutil
import typing

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for static type checkers


def import_checked():
    """Import all modules of the pipeline so that a call of a function with arguments of wrong types is an error."""
    # Not below, with TYPE_CHECKING: the oldest Pillow has an import cycle then.
    import matplotlib.figure  # noqa: F401
    import torch  # noqa: F401

    install_import_hook("pipeline", f"{__name__}.check_types")
    import pipeline
    from pipeline import workflow  # noqa: F401  # for the type checker, it and its declarations import each other

    typing.TYPE_CHECKING = True  # the names that are imported for annotations alone
    try:
        for module in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
            importlib.import_module(module.name)
    finally:
        typing.TYPE_CHECKING = False
