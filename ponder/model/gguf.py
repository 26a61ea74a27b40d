"""Reading GGUF, the single-file format of llama.cpp: weights of any type that the `gguf` library dequantises.

The metadata is turned into a Hugging Face config and the tensors into Hugging Face's names and layout, so that
everything behind that is shared with `ponder.model.folder`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from torch import Tensor

from ponder.errors import BrokenInputError
from ponder.model.config import DecoderConfig
from ponder.model.decoder import deinterleave
from ponder.model.folder import LoadedModel, build_decoder
from ponder.model.tokenizer import Tokenizer

_CONTROL, _USER_DEFINED = 3, 4
"""Token types of GGUF: framing (special) and added by the authors (kept in text)."""


def load_gguf(path: str | Path, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Read a GGUF file of the Llama, Qwen2 or Qwen3 family with a byte-level BPE tokenizer.

    Raises `BrokenInputError` for a damaged file, another family, another kind of tokenizer, or a part of a split file.
    """
    path = Path(path)
    reader = _open(path)
    fields = _Fields(path, reader.fields)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = DecoderConfig.from_hf(_hf_config(fields, tensors))
    names = {_hf_name(name): name for name in tensors if name != "rope_freqs.weight"}

    def read(name: str) -> Tensor:
        tensor = torch.from_numpy(_dequantise(tensors[names[name]], path))
        # llama.cpp keeps q and k of this one family in the order in which rotated pairs are neighbours
        permuted = config.family == "llama" and re.search(r"\.[qk]_proj\.", name)
        return deinterleave(tensor, config.head_dim) if permuted else tensor

    decoder = build_decoder(config, names, read, dtype)
    return LoadedModel(decoder, _tokenizer(fields, config), config, generation={})


def _open(path: Path) -> Any:
    from gguf import GGUFReader

    if not path.is_file():
        raise BrokenInputError(f"there is no file {path}")
    try:
        return GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise BrokenInputError(f"{path} is not a GGUF file or is damaged: {error}") from error


@dataclass(frozen=True)
class _Fields:
    """The metadata of a file."""

    path: Path
    fields: Mapping[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        return self.fields[key].contents() if key in self.fields else default

    def need(self, key: str) -> Any:
        if key not in self.fields:
            raise BrokenInputError(f"{self.path} lacks the metadata {key}")
        return self.fields[key].contents()


def _dequantise(tensor: Any, path: Path) -> np.ndarray:
    from gguf.quants import dequantize

    try:
        values: np.ndarray = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        kind = tensor.tensor_type.name
        raise BrokenInputError(f"{path} holds {tensor.name} as {kind}, which the gguf library cannot read") from error
    # a copy: float32 comes as a read-only view of the file
    return np.array(values, dtype=np.float32)


# --- config ---------------------------------------------------------------------------------------------------------


def _hf_config(fields: _Fields, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that describes this file."""
    if fields.get("split.count", 1) > 1:
        raise BrokenInputError(f"{fields.path} is one part of a split file: join the parts with llama-gguf-split first")
    family = fields.need("general.architecture")

    def need(key: str) -> Any:
        return fields.need(f"{family}.{key}")

    heads, hidden = need("attention.head_count"), need("embedding_length")
    return {
        "model_type": family,
        # the last axis of GGUF's shapes counts the rows
        "vocab_size": int(tensors["token_embd.weight"].shape[-1]) if "token_embd.weight" in tensors else 0,
        "hidden_size": hidden,
        "intermediate_size": need("feed_forward_length"),
        "num_hidden_layers": need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.get(f"{family}.attention.head_count_kv", heads),
        "head_dim": fields.get(f"{family}.attention.key_length", hidden // heads),
        "max_position_embeddings": need("context_length"),
        # stored in float32: 1e-5 should read as 1e-5
        "rms_norm_eps": float(np.format_float_positional(np.float32(need("attention.layer_norm_rms_epsilon")))),
        "rope_theta": fields.get(f"{family}.rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(fields, family, tensors),
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _end_ids(fields),
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
    }


def _end_ids(fields: _Fields) -> list[int]:
    """The end of a text and, where it is another token, the end of a turn."""
    stated = (fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot"))
    return list(dict.fromkeys(i for i in stated if i is not None))


def _rope_scaling(fields: _Fields, family: str, tensors: Mapping[str, Any]) -> dict[str, Any] | None:
    if "rope_freqs.weight" in tensors:
        return _llama3_scaling(_dequantise(tensors["rope_freqs.weight"], fields.path))
    kind = fields.get(f"{family}.rope.scaling.type", "none")
    if kind == "none":
        return None
    return {"rope_type": kind, "factor": fields.get(f"{family}.rope.scaling.factor", 1.0)}


def _llama3_scaling(divisors: np.ndarray) -> dict[str, Any]:
    """Llama 3's scaling from its table of divisors, of which the largest is the factor.

    The bounds of its ramp (1 and 4 wavelengths in 8,192 positions) are the same in all of Meta's models.
    """
    return {
        "rope_type": "llama3",
        "factor": float(divisors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


# --- names ----------------------------------------------------------------------------------------------------------

_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _hf_name(name: str) -> str:
    """The Hugging Face name of a tensor; an unknown name stays, and is then reported as left over."""
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if layer is not None and layer[2] in _LAYER_NAMES:
        return f"model.layers.{layer[1]}.{_LAYER_NAMES[layer[2]]}.{layer[3]}"
    stem, _, kind = name.rpartition(".")
    return f"{_NAMES[stem]}.{kind}" if stem in _NAMES else name


# --- tokenizer ------------------------------------------------------------------------------------------------------

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PUNCTUATION_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_PUNCTUATION_AND_SPACE}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_PUNCTUATION_AND_SPACE}"


def _by_regex(pattern: str) -> Any:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _gpt2_with_single_digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


@dataclass(frozen=True)
class _Style:
    """What GGUF's `tokenizer.ggml.pre` stands for."""

    pieces: Callable[[], Any]
    composed: bool = False
    """Unicode is brought to its composed form (NFC) first."""
    whole_words: bool = False
    """A piece that is a token is taken as it is, whatever the merges say."""


_STYLES = {
    "gpt-2": _Style(_gpt2),
    "default": _Style(_gpt2),
    "smollm": _Style(_gpt2_with_single_digits),
    "llama-bpe": _Style(lambda: _by_regex(_LLAMA3), whole_words=True),
    "qwen2": _Style(lambda: _by_regex(_QWEN2), composed=True),
    "deepseek-r1-qwen": _Style(lambda: _by_regex(_QWEN2), composed=True),
}


def _tokenizer(fields: _Fields, config: DecoderConfig) -> Tokenizer:
    kind, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pre not in _STYLES:
        raise BrokenInputError(
            f"{fields.path} has a tokenizer of kind {kind}/{pre}; Ponder reads gpt2 with {', '.join(_STYLES)}"
        )
    style = _STYLES[pre]
    tokens: list[str] = fields.need("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in fields.need("tokenizer.ggml.merges")]
    backend = Backend(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, ignore_merges=style.whole_words)
    )
    if style.composed:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = style.pieces()
    backend.decoder = decoders.ByteLevel()
    for token, kind_of_token in zip(tokens, fields.get("tokenizer.ggml.token_type", []), strict=False):
        if kind_of_token == _CONTROL:
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind_of_token == _USER_DEFINED:
            backend.add_tokens([AddedToken(token, special=False, normalized=False)])
    backend.post_processor = _framing(fields, tokens)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_positions,
    }
    for role, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        token_id = fields.get(f"tokenizer.ggml.{name}_token_id")
        if token_id is not None:
            settings[f"{role}_token"] = tokens[token_id]
    return Tokenizer(backend, settings, fields.get("tokenizer.chat_template"), config.eos_ids)


def _framing(fields: _Fields, tokens: list[str]) -> Any:
    """Opens texts with the opening token where the file asks for that."""
    plain = processors.ByteLevel(trim_offsets=True)
    bos_id = fields.get("tokenizer.ggml.bos_token_id")
    if not fields.get("tokenizer.ggml.add_bos_token", False) or bos_id is None:
        return plain
    bos = tokens[bos_id]
    opening = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bos_id)]
    )
    return processors.Sequence([plain, opening])
