"""How large a decoder is: parameters, those that a token meets, and what it leaves in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ponder.errors import BrokenInputError
from ponder.model.config import DecoderConfig


@dataclass(frozen=True)
class DecoderShape:
    """What memory and time follow from. Widths are in values, not bytes."""

    name: str
    parameters: int
    active_parameters: int
    """Those that take part in one token: all of them but experts that were not chosen."""
    matmul_parameters: int
    """Those that one token is multiplied with: the active ones without the table of embeddings."""
    layers: int
    hidden: int
    feed_forward: int
    """Inner width that one token passes in a layer, over all its experts; the mean over the layers."""
    query_width: int
    """Heads x head dimension; the mean of both products where keys and values differ in width."""
    cache_width: int
    """Values that a layer keeps of a token: keys and values, or their common compressed form."""
    vocabulary: int
    table_parameters: int
    """Those of the embeddings and the head; one table where they are tied."""
    expert_parameters: int = 0
    """Those in experts of which a token takes some."""
    expert_share: float = 1.0
    """Share of such experts that a token takes."""

    @property
    def layer_parameters(self) -> float:
        """Parameters of a layer, in the mean, all experts included."""
        return (self.parameters - self.table_parameters) / self.layers

    @property
    def cache_values_per_token(self) -> int:
        """Values that all layers keep of a token."""
        return self.layers * self.cache_width

    def parameters_read(self, batch: float) -> float:
        """Parameters that one step over `batch` tokens must read; experts are drawn evenly and independently."""
        untouched = (1 - self.expert_share) ** batch if self.expert_parameters else 0.0
        return self.parameters - self.expert_parameters * untouched


def dense_shape(config: DecoderConfig, name: str) -> DecoderShape:
    """The shape of a decoder that Ponder implements: Llama, Qwen2 or Qwen3."""
    total = dense_parameters(config)
    embeddings = config.vocab_size * config.hidden_size
    return DecoderShape(
        name=name,
        parameters=total,
        active_parameters=total,
        matmul_parameters=total if config.tied_embeddings else total - embeddings,
        layers=config.num_layers,
        hidden=config.hidden_size,
        feed_forward=config.intermediate_size,
        query_width=config.num_heads * config.head_dim,
        cache_width=2 * config.num_kv_heads * config.head_dim,
        vocabulary=config.vocab_size,
        table_parameters=embeddings if config.tied_embeddings else 2 * embeddings,
    )


def reward_shape(shape: DecoderShape) -> DecoderShape:
    """The same decoder with a scalar head in the place of the vocabulary's."""
    table = shape.vocabulary * shape.hidden
    dropped = shape.table_parameters - table  # none where the head is the table of the embeddings
    return replace(
        shape,
        parameters=shape.parameters - dropped + shape.hidden,
        active_parameters=shape.active_parameters - dropped + shape.hidden,
        matmul_parameters=shape.matmul_parameters - table + shape.hidden,
        vocabulary=1,
        table_parameters=table + shape.hidden,
    )


def dense_parameters(config: DecoderConfig) -> int:
    """Embeddings, attention with its biases and norms, SwiGLU, norms."""
    width, query, key = config.hidden_size, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = 2 * width * query + 2 * width * key
    attention += query + 2 * key if config.qkv_bias else 0
    attention += 2 * config.head_dim if config.qk_norm else 0
    layer = attention + 3 * width * config.intermediate_size + 2 * width
    embeddings = config.vocab_size * width * (1 if config.tied_embeddings else 2)
    return embeddings + config.num_layers * layer + width


def shape_of_config(raw: Mapping[str, Any], name: str) -> DecoderShape:
    """The shape behind a Hugging Face `config.json`: Llama, Qwen2, Qwen3, and the mixtures Qwen3-MoE and DeepSeek-V3.

    Raises `BrokenInputError` for any other architecture, and for a garbled config.
    """
    mixtures = {"qwen3_moe": _qwen3_moe, "deepseek_v3": _deepseek_v3}
    read = mixtures.get(str(raw.get("model_type")))
    if read is None:
        return dense_shape(DecoderConfig.from_hf(raw), name)
    try:
        return read(raw, name)
    except (KeyError, TypeError) as error:
        raise BrokenInputError(f"config.json of {name} lacks or garbles a key: {error}") from error


def _qwen3_moe(raw: Mapping[str, Any], name: str) -> DecoderShape:
    """All layers hold `num_experts` experts, of which a token takes `num_experts_per_tok`."""
    width, layers, head = raw["hidden_size"], raw["num_hidden_layers"], raw["head_dim"]
    query, key = raw["num_attention_heads"] * head, raw["num_key_value_heads"] * head
    attention = 2 * width * query + 2 * width * key + 2 * head
    layer = attention + width * raw["num_experts"] + 2 * width
    shared = layers * layer + width + 2 * raw["vocab_size"] * width
    return _mixture(
        raw,
        name,
        shared=shared,
        expert=3 * width * raw["moe_intermediate_size"],
        experts=raw["num_experts"],
        expert_layers=layers,
        feed_forward=raw["num_experts_per_tok"] * raw["moe_intermediate_size"],
        query_width=query,
        cache_width=2 * key,
    )


def _deepseek_v3(raw: Mapping[str, Any], name: str) -> DecoderShape:
    """Latent attention, some dense layers first, then experts with a shared one [2412.19437, 2.1]; without MTP."""
    width, layers, heads = raw["hidden_size"], raw["num_hidden_layers"], raw["num_attention_heads"]
    dense, inner = raw["first_k_dense_replace"], raw["moe_intermediate_size"]
    q_rank, kv_rank, rope = raw["q_lora_rank"], raw["kv_lora_rank"], raw["qk_rope_head_dim"]
    qk, value = raw["qk_nope_head_dim"] + rope, raw["v_head_dim"]
    attention = width * q_rank + q_rank + q_rank * heads * qk
    attention += width * (kv_rank + rope) + kv_rank + kv_rank * heads * (qk - rope + value) + heads * value * width
    router = (width + 1) * raw["n_routed_experts"]
    shared = layers * (attention + 2 * width) + width + 2 * raw["vocab_size"] * width
    shared += dense * 3 * width * raw["intermediate_size"]
    shared += (layers - dense) * (router + raw["n_shared_experts"] * 3 * width * inner)
    chosen = (raw["num_experts_per_tok"] + raw["n_shared_experts"]) * inner
    return _mixture(
        raw,
        name,
        shared=shared,
        expert=3 * width * inner,
        experts=raw["n_routed_experts"],
        expert_layers=layers - dense,
        feed_forward=(dense * raw["intermediate_size"] + (layers - dense) * chosen) // layers,
        query_width=heads * (qk + value) // 2,
        cache_width=kv_rank + rope,
    )


def _mixture(
    raw: Mapping[str, Any],
    name: str,
    *,
    shared: int,
    expert: int,
    experts: int,
    expert_layers: int,
    feed_forward: int,
    query_width: int,
    cache_width: int,
) -> DecoderShape:
    """`shared` counts what every token meets, both tables of the vocabulary included; `expert` is one expert."""
    chosen = raw["num_experts_per_tok"]
    active = shared + expert_layers * chosen * expert
    return DecoderShape(
        name=name,
        parameters=shared + expert_layers * experts * expert,
        active_parameters=active,
        matmul_parameters=active - raw["vocab_size"] * raw["hidden_size"],
        layers=raw["num_hidden_layers"],
        hidden=raw["hidden_size"],
        feed_forward=feed_forward,
        query_width=query_width,
        cache_width=cache_width,
        vocabulary=raw["vocab_size"],
        table_parameters=2 * raw["vocab_size"] * raw["hidden_size"],
        expert_parameters=expert_layers * experts * expert,
        expert_share=chosen / experts,
    )


def _dense(model_type: str, *numbers: int, tied: bool = False, head_dim: int | None = None) -> dict[str, Any]:
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    raw = dict(zip((*keys, "vocab_size"), numbers, strict=True))
    return {"model_type": model_type, "tie_word_embeddings": tied, "head_dim": head_dim, **raw}


def _qwen3_mixture(hidden: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "qwen3_moe",
        "hidden_size": hidden,
        "moe_intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "vocab_size": 151936,
    }


_DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "vocab_size": 129280,
}

PUBLIC_CONFIGS: dict[str, dict[str, Any]] = {
    "HuggingFaceTB/SmolLM2-135M": _dense("llama", 576, 1536, 30, 9, 3, 49152, tied=True),
    "Qwen/Qwen2.5-0.5B": _dense("qwen2", 896, 4864, 24, 14, 2, 151936, tied=True),
    "Qwen/Qwen2.5-1.5B": _dense("qwen2", 1536, 8960, 28, 12, 2, 151936, tied=True),
    "Qwen/Qwen2.5-3B": _dense("qwen2", 2048, 11008, 36, 16, 2, 151936, tied=True),
    "Qwen/Qwen2.5-7B": _dense("qwen2", 3584, 18944, 28, 28, 4, 152064),
    "Qwen/Qwen2.5-14B": _dense("qwen2", 5120, 13824, 48, 40, 8, 152064),
    "Qwen/Qwen2.5-32B": _dense("qwen2", 5120, 27648, 64, 40, 8, 152064),
    "Qwen/Qwen2.5-72B": _dense("qwen2", 8192, 29568, 80, 64, 8, 152064),
    "Qwen/Qwen2.5-Math-1.5B": _dense("qwen2", 1536, 8960, 28, 12, 2, 151936, tied=True),
    "Qwen/Qwen2.5-Math-7B": _dense("qwen2", 3584, 18944, 28, 28, 4, 152064),
    "Qwen/Qwen3-8B": _dense("qwen3", 4096, 12288, 36, 32, 8, 151936, head_dim=128),
    "Qwen/Qwen3-14B": _dense("qwen3", 5120, 17408, 40, 40, 8, 151936, head_dim=128),
    "Qwen/Qwen3-32B": _dense("qwen3", 5120, 25600, 64, 64, 8, 151936, head_dim=128),
    "Qwen/Qwen3-30B-A3B": _qwen3_mixture(2048, 768, 48, 32),
    "Qwen/Qwen3-235B-A22B": _qwen3_mixture(4096, 1536, 94, 64),
    "meta-llama/Llama-3.1-8B": _dense("llama", 4096, 14336, 32, 32, 8, 128256),
    "meta-llama/Llama-3.1-70B": _dense("llama", 8192, 28672, 80, 64, 8, 128256),
    "meta-llama/Llama-3.3-70B": _dense("llama", 8192, 28672, 80, 64, 8, 128256),
    "deepseek-ai/DeepSeek-V3": _DEEPSEEK_V3,
    "deepseek-ai/DeepSeek-R1": _DEEPSEEK_V3,
}
"""What counts here of the `config.json` of models on the Hub, by id; `-Instruct` and `-Base` are of the same shape."""


def public_shape(name: str) -> DecoderShape | None:
    """The shape of a model on the Hub, from the table alone; None where it is not in it."""
    config = PUBLIC_CONFIGS.get(name.removesuffix("-Instruct").removesuffix("-Base"))
    return None if config is None else shape_of_config(config, name)
