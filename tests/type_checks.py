"""Checks of the pipeline's annotations at run time, with dtypes and shapes."""

import importlib
import pkgutil
import typing
from pathlib import Path

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for static type checkers


ROOT = Path(__file__).parents[1]


def import_checked():
    """Import all modules of the pipeline, so that calling a function with arguments of wrong types is an error.

    This applies to the modules with arrays in their annotations. Static checks suffice for the others, whose many small
    calls the checks would make slow: they would take a tenth of the time of the tests.
    """
    # Not below, with TYPE_CHECKING: the oldest Pillow has an import cycle then.
    import matplotlib.figure  # noqa: F401
    import torch  # noqa: F401

    paths = [path for path in ROOT.glob("pipeline/**/*.py") if "from pipeline.shapes import" in path.read_text()]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    install_import_hook(names, f"{__name__}.check_types")
    import pipeline
    import pipeline.workflow.engine  # pydantic must be imported before, too

    typing.TYPE_CHECKING = True  # the names that are imported for annotations alone
    try:
        for module in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
            importlib.import_module(module.name)
    finally:
        typing.TYPE_CHECKING = False
