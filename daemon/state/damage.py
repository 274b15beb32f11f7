"""Whether a model's stored file is what was put there, as far as its size tells; and what to do where it is not. Only
`llmctl model verify` reads it all."""

import os
from pathlib import Path


def damage(file: str | os.PathLike[str], size: int) -> str:
    """What is wrong with a file that had so many bytes; "": nothing that can be seen from here."""
    try:
        found = Path(file).stat().st_size
    except FileNotFoundError:
        return "its stored file is missing"
    except OSError as e:
        return f"its stored file cannot be read: {e.strerror}"
    return "" if found == size else f"its stored file is damaged: it has {found:,} bytes of {size:,}"


def repair(form: str, *, imported: bool) -> str:
    """What to type. `form`: MODEL@TYPE; `imported`: it is what was imported, and was not made here."""
    model, _, kind = form.partition("@")
    if imported:
        return f"import the same file again (llmctl model import FILE --name {model}), or take a copy out of a backup"
    return f"remove it and make it again (llmctl model rm {form}, llmctl model quantize {model} --type {kind})"
