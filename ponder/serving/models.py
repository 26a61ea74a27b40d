"""The models of a server: known by id, loaded when first asked for, dropped when memory is needed for another."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ponder.errors import UsageError
from ponder.model.folder import LoadedModel
from ponder.model.load import load_model, resolve
from ponder.serving.errors import ApiError
from ponder.serving.prompts import ChatFormat, chat_format


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from."""

    reference: str
    """As `ponder.load` takes it: a name, a folder, a .gguf file, a Hub id."""
    template: str | None = None
    """How conversations are put to it; None asks the model's folder and run."""


@dataclass(eq=False)
class ServedModel:
    """A loaded model and how many requests use it."""

    id: str
    loaded: LoadedModel
    chat: ChatFormat
    bytes: int
    users: int = 0


class ServedModels:
    """Models by id. Safe to use from several threads.

    `discover`, where given, names further models each time it is asked, such as the checkpoints of runs that go on.
    """

    def __init__(
        self,
        sources: Mapping[str, ModelSource] | None = None,
        discover: Callable[[], Mapping[str, ModelSource]] | None = None,
        max_bytes: int = 8 * 2**30,
    ) -> None:
        """`max_bytes` bounds the weights in memory."""
        self._sources = dict(sources or {})
        self._discover = discover
        self._max_bytes = max_bytes
        self._started = int(time.time())
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._loaded: OrderedDict[tuple[str, int], ServedModel] = OrderedDict()  # least recently used first

    def sources(self) -> dict[str, ModelSource]:
        """All models that may be asked for."""
        return {**(self._discover() if self._discover is not None else {}), **self._sources}

    def created(self, source: ModelSource) -> int:
        """When a model's files were last written, in Unix seconds; for what is no path, when the server started."""
        path = Path(source.reference)
        return int(path.stat().st_mtime) if path.exists() else self._started

    @property
    def loaded_bytes(self) -> int:
        """Weights in memory."""
        return sum(model.bytes for model in list(self._loaded.values()))

    def acquire(self, model_id: str) -> ServedModel:
        """The model, loaded if need be; give it back with `release`. May take long: not for an event loop.

        Raises `ApiError` 404 for an id that is not served and 503 where models in use leave no memory for it, and
        `BrokenInputError` when its files cannot be read.
        """
        source = self.sources().get(model_id)
        if source is None:
            raise ApiError(
                404, f"the model {model_id!r} is not served here: GET /v1/models lists those that are",
                "model_not_found", "model",
            )  # fmt: skip
        # a stage that was run again has new weights in the same place
        key = (model_id, _stamp(source))
        model = self._take(key)
        if model is not None:
            return model
        with self._loading:  # one at a time; those that are loaded are served meanwhile
            model = self._take(key)
            if model is None:
                model = _load(model_id, source)
                model.users = 1
                with self._lock:
                    self._make_room(model)
                    self._loaded[key] = model
        return model

    def _take(self, key: tuple[str, int]) -> ServedModel | None:
        """A loaded model, now in use and the most recently used."""
        with self._lock:
            model = self._loaded.get(key)
            if model is not None:
                self._loaded.move_to_end(key)
                model.users += 1
            return model

    def release(self, model: ServedModel) -> None:
        """A request is done with a model."""
        with self._lock:
            model.users -= 1

    def _make_room(self, new: ServedModel) -> None:
        """Drop models that nobody uses until the new one fits. Raises `ApiError` 503 when it does not."""
        excess = self.loaded_bytes + new.bytes - self._max_bytes
        for key, model in list(self._loaded.items()):
            if excess > 0 and model.users == 0:
                del self._loaded[key]
                excess -= model.bytes
        if excess > 0 and self._loaded:
            raise ApiError(
                503, f"other models are in use and leave no memory for {new.id!r}: ask again, or raise --memory",
                "no_memory", headers={"Retry-After": "5"},
            )  # fmt: skip


def named_sources(references: Iterable[str], template: str | None = None) -> dict[str, ModelSource]:
    """Sources from a command's arguments: `MODEL` or `ID=MODEL`; each must exist.

    A stage's model is called RUN/STAGE, another folder or file by its own name. Raises `UsageError` for half of
    `ID=MODEL` and when two get the same id, `BrokenInputError` when there is no such model.
    """
    sources: dict[str, ModelSource] = {}
    for text in references:
        name, equals, reference = text.partition("=")
        if not equals:
            name, reference = _default_id(text), text
        if not name or not reference:
            raise UsageError(f"{text!r} must be MODEL or ID=MODEL, as in other=mini")
        if name in sources:
            raise UsageError(f"two models would be called {name!r}: name one, as in other={reference}")
        resolve(reference)
        sources[name] = ModelSource(reference, template)
    return sources


def _default_id(reference: str) -> str:
    path = Path(reference)
    if not path.exists():
        return reference
    parts = path.absolute().parts
    if len(parts) >= 5 and parts[-1] == "model" and parts[-3] == "stages":
        return f"{parts[-4]}/{parts[-2]}"
    return path.stem if path.suffix == ".gguf" else path.absolute().name


def _stamp(source: ModelSource) -> int:
    path = Path(source.reference)
    return path.stat().st_mtime_ns if path.exists() else 0


def _load(model_id: str, source: ModelSource) -> ServedModel:
    loaded = load_model(source.reference)
    size = sum(weight.nbytes for weight in loaded.decoder.parameters())
    return ServedModel(model_id, loaded, chat_format(source.reference, loaded.tokenizer, source.template), size)
