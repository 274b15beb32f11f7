"""llama.cpp's library in the interpreter of torch: it lies in the package `llmd`, whose other packages (numpy, above
all) are not this interpreter's. Vocabularies are read with it; nothing is computed."""

import importlib.util
import sys
from importlib.machinery import ModuleSpec

NAME = "llama_cpp"


def borrow(folder: str) -> None:
    """`folder`: where `llama_cpp` lies, with its `lib`. Its own `__init__`, which needs more than the library, is not
    run."""
    if NAME in sys.modules:
        return
    spec = ModuleSpec(NAME, None, is_package=True)
    spec.submodule_search_locations = [folder]
    sys.modules[NAME] = importlib.util.module_from_spec(spec)
