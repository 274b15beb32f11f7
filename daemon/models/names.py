"""What a model may be called, and what it is called after its file."""

import re
import unicodedata
from pathlib import Path

from llmd.daemon.errors import BadRequest
from llmd.daemon.models.checking import check

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
RULE = "a model's name has 1 to 64 lower-case letters, digits, dots, hyphens and underscores, a letter or digit first"
# as the caches of Hugging Face and Ollama name their files
_HASH = re.compile(r"(sha256[-:])?[0-9a-f]{32,64}", re.IGNORECASE)


def checked(name: str) -> str:
    """Raises BadRequest for what is no model's name, with one to give."""
    if not NAME.fullmatch(name):
        raise BadRequest(f"{RULE}; as in {proposed(name)}", param="name")
    return name


async def name_of(path: Path, source: Path) -> str:
    """The name of what was asked for, which may be a link to a file that is named otherwise. Raises BadRequest, with a
    name to give, where it holds letters that a model's name cannot keep, or is a blob's hash."""
    stem = path.name.removesuffix(".gguf").removesuffix(".GGUF")
    if _HASH.fullmatch(stem):
        title = (await check(source)).name
        raise BadRequest(
            f"the file is named after its content: give the model a name, as in --name {proposed(title)}", param="name"
        )
    return _named(stem, "file")


def _named(stem: str, what: str) -> str:
    name = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("._-")
    if not NAME.fullmatch(name) or any(c.isalnum() and not c.isascii() for c in stem):
        raise BadRequest(f"{RULE}, unlike this {what}: give it one, as in --name {proposed(stem)}", param="name")
    return name


def name_of_folder(folder: Path) -> str:
    """As `name_of`, of a Hugging Face model's folder; of one in the cache, `models--ORGANISATION--NAME`, that name."""
    top = folder.parent.parent.name
    if folder.parent.name == "snapshots" and top.startswith("models--"):
        return _named(top.rpartition("--")[2], "folder")
    if _HASH.fullmatch(folder.name):
        raise BadRequest(
            "the folder is named after its content: give the model a name, as in --name my-model", param="name"
        )
    return _named(folder.name, "folder")


def proposed(text: str) -> str:
    """A model's name as near to a text as can be."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9._-]+", "-", plain).strip("._-")[:64].rstrip("._-") or "my-model"
