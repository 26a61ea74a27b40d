"""The shape of a decoder, read from and written to a Hugging Face `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from ponder.errors import BrokenInputError

Family = Literal["llama", "qwen2", "qwen3"]


class UnsupportedModelError(BrokenInputError):
    """A sound config that this decoder does not implement: the fallback through transformers may."""


_ARCHITECTURES: dict[Family, str] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a Llama, Qwen2 or Qwen3 decoder.

    `rope_scaling` is the Hugging Face mapping (`rope_type` default, linear or llama3). `eos_ids` are the tokens that
    end a text. Biases follow the family: `qkv_bias` for Qwen2, `qk_norm` for Qwen3.
    """

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rms_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    tied_embeddings: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    eos_ids: tuple[int, ...] = ()
    bos_id: int | None = None
    pad_id: int | None = None
    initializer_range: float = 0.02
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Keys of the original `config.json` that Ponder does not use and writes back unchanged."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise BrokenInputError(
                f"num_attention_heads ({self.num_heads}) is no multiple of num_key_value_heads ({self.num_kv_heads})"
            )
        if self.head_dim % 2:
            raise BrokenInputError(f"head_dim ({self.head_dim}) must be even for rotary positions")

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> DecoderConfig:
        """Read a Hugging Face config.

        Raises `UnsupportedModelError` for what this decoder does not implement, `BrokenInputError` for a garbled one.
        """
        family = raw.get("model_type")
        if family not in _ARCHITECTURES:
            raise UnsupportedModelError(f"model_type {family!r} is none of {', '.join(_ARCHITECTURES)}")
        try:
            hidden, heads = int(raw["hidden_size"]), int(raw["num_attention_heads"])
            rope = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
            theta = float(rope.pop("rope_theta", None) or raw.get("rope_theta") or 10000.0)
            rope_type = rope.get("rope_type") or rope.get("type") or "default"
            eos = raw.get("eos_token_id")
            config = cls(
                family=cast(Family, family),
                vocab_size=int(raw["vocab_size"]),
                hidden_size=hidden,
                intermediate_size=int(raw["intermediate_size"]),
                num_layers=int(raw["num_hidden_layers"]),
                num_heads=heads,
                num_kv_heads=int(raw.get("num_key_value_heads") or heads),
                head_dim=int(raw.get("head_dim") or hidden // heads),
                max_positions=int(raw.get("max_position_embeddings", 2048)),
                rms_eps=float(raw.get("rms_norm_eps", 1e-6)),
                rope_theta=theta,
                rope_scaling=None if rope_type == "default" else {**rope, "rope_type": rope_type},
                tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
                qkv_bias=family == "qwen2" or bool(raw.get("attention_bias", False)),
                qk_norm=family == "qwen3",
                eos_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (int(eos),),
                bos_id=raw.get("bos_token_id"),
                pad_id=raw.get("pad_token_id"),
                initializer_range=float(raw.get("initializer_range", 0.02)),
                extra={k: v for k, v in raw.items() if k not in _KNOWN_KEYS},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BrokenInputError(f"config.json lacks or garbles a key: {error}") from error
        config._refuse_what_is_missing(raw)
        return config

    def _refuse_what_is_missing(self, raw: Mapping[str, Any]) -> None:
        rope_type = (self.rope_scaling or {}).get("rope_type", "default")
        if rope_type not in ("default", "linear", "llama3"):
            raise UnsupportedModelError(
                f"rope scaling {rope_type!r} is not implemented (default, linear and llama3 are)"
            )
        if raw.get("hidden_act", "silu") != "silu":
            raise UnsupportedModelError(f"hidden_act {raw['hidden_act']!r} is not implemented (silu is)")
        if (
            raw.get("use_sliding_window")
            or raw.get("mlp_bias")
            or (self.family != "qwen2" and raw.get("attention_bias"))
        ):
            raise UnsupportedModelError(
                "sliding windows, mlp_bias and attention_bias are not implemented by this decoder"
            )

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` that transformers reads."""
        rope = {"rope_theta": self.rope_theta, **(self.rope_scaling or {"rope_type": "default"})}
        return {
            **self.extra,
            "architectures": [_ARCHITECTURES[self.family]],
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.rms_eps,
            "rope_parameters": rope,
            # transformers before 5 reads these two instead of rope_parameters
            "rope_theta": self.rope_theta,
            "rope_scaling": dict(self.rope_scaling) if self.rope_scaling else None,
            "tie_word_embeddings": self.tied_embeddings,
            "hidden_act": "silu",
            "initializer_range": self.initializer_range,
            "bos_token_id": self.bos_id,
            "eos_token_id": list(self.eos_ids) if len(self.eos_ids) > 1 else next(iter(self.eos_ids), None),
            "pad_token_id": self.pad_id,
        }


_KNOWN_KEYS = frozenset(
    "architectures model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads head_dim max_position_embeddings rms_norm_eps rope_parameters rope_theta rope_scaling "
    "tie_word_embeddings hidden_act initializer_range bos_token_id eos_token_id pad_token_id torch_dtype dtype "
    "transformers_version _name_or_path".split()
)
