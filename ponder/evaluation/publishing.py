"""From what a person writes to what the rest of the world gets: an export with its card, and its upload when asked.

ponder export r1-mini:r1 --to r1     publish: origin, model, licence, card, export
ponder push r1 someone/r1            push: the same folder to the Hub
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ponder.errors import PonderError, UsageError
from ponder.evaluation.model_card import SOURCE_CARD, Subject, card_text
from ponder.evaluation.origin import Origin, find_licence, find_origin
from ponder.model.embedded import FOLDERS
from ponder.model.export import (
    CARD,
    ExportFacts,
    ExportSettings,
    changed_files,
    chat_template,
    export_model,
    read_export,
)
from ponder.model.folder import CONFIG, LoadedModel, read_object
from ponder.model.formats import Format, WeightType
from ponder.model.load import load_model
from ponder.model.templates import CHAT, template_text
from ponder.serving.prompts import stage_template


def publish(
    reference: str,
    target: Path,
    format_: Format,
    weights: WeightType | None = None,
    template: str | None = None,
    force: bool = False,
) -> ExportFacts:
    """Export the model that `reference` names (see `find_origin`) to the folder `target`, with card and licence.

    `weights` defaults to F16 in GGUF, else to the type in which the source is stored. `template` is what its prompts
    look like; the default is the template of its stage, else its own chat template. Raises as `find_origin`,
    `load_model` and `export_model` do.
    """
    origin = find_origin(reference)
    model = load_model(origin.reference)
    prompt = _prompt_template(origin, model, template)
    if prompt is not None and prompt != CHAT:
        model.tokenizer.chat_template = chat_template(template_text(prompt))
    licence = find_licence(origin)
    settings = ExportSettings(format_, weights or _default_type(origin, format_), origin.name, licence.id, force)
    attachments = {**licence.files, **_source_card(origin)}
    subject = Subject(
        origin=origin,
        licence=licence,
        template=prompt,
        family=model.config.family,
        generation=model.generation,
        chat_template=model.tokenizer.chat_template,
        has_source_card=SOURCE_CARD in attachments,
    )
    return export_model(model, target, settings, lambda facts: card_text(subject, facts), attachments)


def push(folder: Path, repository: str, private: bool = True, api: Any = None) -> str:
    """Upload an export to a repository of the Hub, made if need be; returns its address.

    `api` is a `huggingface_hub.HfApi`. The card may have been edited since the export; everything else must be what was
    compared. Raises `UsageError` when it is not, `PonderError` when the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    read_export(folder)
    changed = [name for name in changed_files(folder) if name != CARD]
    if changed:
        raise UsageError(f"{folder}: {changed[0]} is not as the export wrote it: export again before you push")
    hub = HfApi() if api is None else api
    try:
        address = hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload an export by Ponder")
    except LocalTokenNotFoundError as error:
        raise UsageError("the Hub does not know you: log in with `hf auth login`, or set HF_TOKEN") from error
    except HFValidationError as error:
        raise UsageError(f"{repository!r} is no name of a repository: give one such as someone/my-model") from error
    except (HfHubHTTPError.__bases__[0], OSError) as error:  # the base of all errors of the HTTP library that it uses
        reason = str(error).strip().splitlines()[0]
        raise PonderError(f"the Hub did not take {folder} as {repository}: {reason}") from error
    return str(address)


def _prompt_template(origin: Origin, model: LoadedModel, template: str | None) -> str | None:
    """A name or text as `ponder.model.templates` knows them; None where nobody knows."""
    if template is not None:
        return template
    trained = stage_template(Path(origin.reference))
    if trained is not None:
        return trained
    if model.tokenizer.chat_template is not None:
        return CHAT
    return "mini" if origin.reference in FOLDERS else None


def _default_type(origin: Origin, format_: Format) -> WeightType:
    if format_ == "gguf":
        return WeightType.F16
    config = Path(origin.reference) / CONFIG
    raw = read_object(config) if config.is_file() else {}
    stored = {"bfloat16": WeightType.BF16, "float16": WeightType.F16}
    return stored.get(str(raw.get("dtype") or raw.get("torch_dtype")), WeightType.F32)


def _source_card(origin: Origin) -> dict[str, bytes]:
    """What the authors of a model that no run made say of it."""
    folder = FOLDERS.get(origin.reference, Path(origin.reference))
    # the two small bases share one card, a folder above
    for path in (folder / CARD, folder.parent / CARD) if origin.reference in FOLDERS else (folder / CARD,):
        if origin.made is None and path.is_file():
            return {SOURCE_CARD: path.read_bytes()}
    return {}
