"""Models as Hugging Face folders: config.json, safetensors (in shards where large), tokenizer, generation_config.json.

What is written here loads in transformers and vLLM as it is, and what they write loads here. Weights are safetensors
only: other formats can run code when they are opened.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ponder.errors import BrokenInputError
from ponder.model.config import DecoderConfig, UnsupportedModelError
from ponder.model.decoder import Decoder, deinterleave, interleave
from ponder.model.fallback import FallbackDecoder
from ponder.model.tokenizer import Tokenizer

CONFIG = "config.json"
GENERATION = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

MAX_SHARD_BYTES = 5_000_000_000
"""Largest weights file written, in bytes; the Hub's habit."""


@dataclass
class LoadedModel:
    """A model as it was found: weights, tokenizer, shape, and its authors' sampling settings."""

    decoder: Decoder
    tokenizer: Tokenizer
    config: DecoderConfig
    generation: dict[str, Any]
    """Content of generation_config.json; empty where there is none."""

    def to(self, device: torch.device) -> LoadedModel:
        """The same model, its weights on `device`."""
        self.decoder.to(device)
        return self


def load_folder(path: str | Path, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Read a Hugging Face folder.

    Architectures other than Llama, Qwen2 and Qwen3 come as a `FallbackDecoder` (slower, needs transformers). Raises
    `BrokenInputError` when a file is missing or damaged, or weights do not fit the config.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BrokenInputError(f"{folder} is not a folder")
    raw = read_object(folder / CONFIG)
    tokenizer = Tokenizer.from_folder(folder)
    decoder = _read_decoder(folder, raw, dtype)
    generation = read_object(folder / GENERATION) if (folder / GENERATION).exists() else {}
    return LoadedModel(decoder, tokenizer, decoder.config, generation)


def save_folder(
    path: str | Path,
    decoder: Decoder,
    tokenizer: Tokenizer,
    generation: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a Hugging Face folder that transformers loads with equal logits.

    The folder appears whole or not at all, and replaces an older one of the same name. Weights are written in their own
    dtype. Raises `BrokenInputError` when the disk refuses; an older folder is then untouched.
    """
    with replacing_folder(Path(path)) as folder:
        if isinstance(decoder, FallbackDecoder):
            decoder.save(folder, max_shard_bytes)
        else:
            dtype = str(decoder.embedding.weight.dtype).removeprefix("torch.")
            write_json(folder / CONFIG, {**decoder.config.to_hf(), "dtype": dtype})
            write_shards(folder, to_hf_tensors(decoder), max_shard_bytes)
        tokenizer.save(folder)
        write_json(folder / GENERATION, {**(generation or {}), **end_tokens(tokenizer)})


def build_decoder(
    config: DecoderConfig, names: Iterable[str], read: Callable[[str], Tensor], dtype: torch.dtype = torch.float32
) -> Decoder:
    """A decoder from tensors under their Hugging Face names.

    `names` are those that exist, `read` gets one. Raises `BrokenInputError` naming tensors that are missing, left over
    or of another shape than the config says.
    """
    layout = _layout(config)
    _check_names({part.name for parts in layout.values() for part in parts}, set(names), config)
    decoder = Decoder(config)
    for name, weight in decoder.named_parameters():
        weight.data = torch.cat([_read_part(part, read, config).to(dtype) for part in layout[name]])
    return decoder


def to_hf_tensors(decoder: Decoder) -> dict[str, Tensor]:
    """The weights under their Hugging Face names, in Hugging Face's layout, on the CPU."""
    return rename_to_hf(decoder.config, dict(decoder.named_parameters()))


def rename_to_hf(config: DecoderConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same from weights under the decoder's own names."""
    layout = _layout(config)
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        sizes = [part.shape[0] for part in layout[name]]
        for part, rows in zip(layout[name], weight.detach().cpu().split(sizes), strict=True):
            tensors[part.name] = deinterleave(rows, config.head_dim) if part.rotary else rows.contiguous()
    return tensors


@dataclass(frozen=True)
class _Part:
    """A Hugging Face tensor that is all, or some rows, of one of ours."""

    name: str
    shape: tuple[int, ...]
    rotary: bool = False
    """Rows of q and k, which stand in another order there: see `ponder.model.decoder`."""


def _layout(c: DecoderConfig) -> dict[str, list[_Part]]:
    """For each of the decoder's parameters, the Hugging Face tensors that it is made of, from the first row on."""
    d, f, q, kv = c.hidden_size, c.intermediate_size, c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    layout = {
        "embedding.weight": [_Part("model.embed_tokens.weight", (c.vocab_size, d))],
        "norm.weight": [_Part("model.norm.weight", (d,))],
    }
    if not c.tied_embeddings:
        layout["head.weight"] = [_Part("lm_head.weight", (c.vocab_size, d))]
    for i in range(c.num_layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        attention, mlp = theirs + "self_attn.", theirs + "mlp."
        heads = (("q_proj", q, True), ("k_proj", kv, True), ("v_proj", kv, False))
        layout |= {
            ours + "attention_norm.weight": [_Part(theirs + "input_layernorm.weight", (d,))],
            ours + "qkv.weight": [_Part(f"{attention}{name}.weight", (n, d), rotary) for name, n, rotary in heads],
            ours + "out.weight": [_Part(attention + "o_proj.weight", (d, q))],
            ours + "mlp_norm.weight": [_Part(theirs + "post_attention_layernorm.weight", (d,))],
            ours + "gate_up.weight": [_Part(f"{mlp}{name}_proj.weight", (f, d)) for name in ("gate", "up")],
            ours + "down.weight": [_Part(mlp + "down_proj.weight", (d, f))],
        }
        if c.qkv_bias:
            layout[ours + "qkv.bias"] = [_Part(f"{attention}{name}.bias", (n,), rotary) for name, n, rotary in heads]
        if c.qk_norm:
            layout[ours + "q_norm.weight"] = [_Part(attention + "q_norm.weight", (c.head_dim,), rotary=True)]
            layout[ours + "k_norm.weight"] = [_Part(attention + "k_norm.weight", (c.head_dim,), rotary=True)]
    return layout


def _check_names(wanted: set[str], found: set[str], config: DecoderConfig) -> None:
    missing = sorted(wanted - found)
    if missing:
        raise BrokenInputError(f"the weights lack {_some(missing)}, which config.json asks for")
    # older files keep tables that follow from the config, and some keep the head that is tied to the embedding
    extra = {name for name in found - wanted if not name.endswith("rotary_emb.inv_freq")}
    if config.tied_embeddings:
        extra.discard("lm_head.weight")
    if extra:
        raise BrokenInputError(f"the weights hold {_some(sorted(extra))}, which config.json does not ask for")


def _some(names: list[str], count: int = 3) -> str:
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")


def _read_part(part: _Part, read: Callable[[str], Tensor], config: DecoderConfig) -> Tensor:
    tensor = read(part.name)
    if tuple(tensor.shape) != part.shape:
        raise BrokenInputError(f"{part.name} has shape {tuple(tensor.shape)}, but config.json asks for {part.shape}")
    return interleave(tensor, config.head_dim) if part.rotary else tensor


def _read_decoder(folder: Path, raw: Mapping[str, Any], dtype: torch.dtype) -> Decoder:
    names, read = open_weights(folder)
    try:
        config = DecoderConfig.from_hf(raw)
    except UnsupportedModelError as error:
        return FallbackDecoder.from_folder(folder, dtype, why=str(error))
    return build_decoder(config, names, read, dtype)


def open_weights(folder: Path) -> tuple[set[str], Callable[[str], Tensor]]:
    """The names of the tensors in a folder, and what reads one of them.

    Both this and the reading raise `BrokenInputError` when files are missing or damaged.
    """
    shards = _shards(folder)
    with _damage_named(folder):
        files = {path: safe_open(path, framework="pt") for path in sorted(set(shards.values()))}

    def read(name: str) -> Tensor:
        with _damage_named(folder):
            tensor: Tensor = files[shards[name]].get_tensor(name)
        return tensor

    return set(shards), read


@contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise BrokenInputError(f"the weights in {folder} are missing or damaged: {error}") from error


def _shards(folder: Path) -> dict[str, Path]:
    """The file of each tensor in a folder."""
    if (folder / INDEX).exists():
        places = read_object(folder / INDEX).get("weight_map")
        # a name with a path in it could reach out of the folder
        if not isinstance(places, dict) or any(Path(str(p)).name != p for p in places.values()):
            raise BrokenInputError(f"{folder / INDEX} has no valid weight_map")
        return {name: folder / place for name, place in places.items()}
    path = folder / WEIGHTS
    if path.exists():
        try:
            with safe_open(path, framework="pt") as file:
                return dict.fromkeys(file.keys(), path)
        except (OSError, SafetensorError) as error:
            raise BrokenInputError(f"{path} is damaged: {error}") from error
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise BrokenInputError(
            f"{folder} holds pickled weights, which can run code when opened: convert them to safetensors first"
        )
    raise BrokenInputError(f"{folder} holds no {WEIGHTS}")


def write_shards(folder: Path, tensors: Mapping[str, Tensor], max_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write tensors as safetensors: one file, or an index and several of at most `max_bytes`. config.json is there."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > max_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    if len(shards) == 1:
        _write_shard(folder, WEIGHTS, shards[0])
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        place = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(folder, place, shard)
        places |= dict.fromkeys(shard, place)
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _write_shard(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    save_file(dict(tensors), folder / name, metadata={"format": "pt"})
    # safetensors lets nobody but the owner read what it writes; the other files of the folder say who may
    shutil.copymode(folder / CONFIG, folder / name)


def end_tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    """The special tokens as config.json and generation_config.json name them."""
    eos = tokenizer.eos_ids
    stated = {
        "eos_token_id": list(eos) if len(eos) > 1 else next(iter(eos), None),
        "pad_token_id": tokenizer.pad_id,
        "bos_token_id": tokenizer.bos_id,
    }
    return {name: value for name, value in stated.items() if value is not None}


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place at the end; on any failure it vanishes and `target` stays."""
    new, old = (target.with_name(f".{target.name}.{state}") for state in ("new", "old"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # what a killed process may have left
        _remove(new)
        new.mkdir()
        try:
            yield new
            for path in [*new.iterdir(), new]:
                _sync(path)
            _remove(old)
            if target.exists():
                target.rename(old)
            new.rename(target)
            _sync(target.parent)
            _remove(old)
        finally:
            _remove(new)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BrokenInputError(
            f"cannot write the model to {target}: {reason}; free space there or choose another folder"
        ) from error


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one of a folder's JSON files."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_object(path: Path) -> dict[str, Any]:
    """Read one of a folder's JSON files. Raises `BrokenInputError` when it is missing or no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BrokenInputError(f"{path.parent} has no {path.name}: give a Hugging Face model folder") from error
    except (OSError, ValueError) as error:
        raise BrokenInputError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(value, dict):
        raise BrokenInputError(f"{path} must hold a JSON object")
    return value
