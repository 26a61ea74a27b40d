"""Every other architecture, through transformers, behind the decoder's interface: slower, but the rest need not know.

transformers lets attention be replaced by name. Ours hands queries, keys and values to the `Attention` object of the
forward pass in hand, so packing, the engine's cache and exact log-probabilities work as they do for the decoder. A
probe on loading compares the logits with those of the untouched model, and refuses an architecture that does more
than this interface can express (capped or scaled logits, attention sinks, state spaces).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ponder.errors import BrokenInputError
from ponder.model.config import DecoderConfig
from ponder.model.decoder import Attention, Decoder, PackedAttention, Packing

_NAME = "ponder"
_PROBE_LENGTHS = (5, 8)
"""Two sequences side by side: what carries a state from token to token besides attention would mix them."""
_attention: ContextVar[Attention] = ContextVar("attention")


class FallbackDecoder(Decoder):
    """A transformers model behind the decoder's interface: `config`, `head_weight`, `hidden`, `logits`."""

    def __init__(self, model: Any) -> None:
        """Takes the model over. Raises `BrokenInputError` when this interface cannot express its architecture."""
        nn.Module.__init__(self)  # none of the decoder's own layers
        self.model = model
        name = type(model).__name__
        try:
            self.config = _config(model.config)
        except AttributeError as error:
            raise BrokenInputError(f"{name} is no decoder that Ponder can run: {error}") from error
        _register()
        _without_dropout(model)
        self._refuse_windows(name)
        self._probe(name)

    @classmethod
    def from_folder(cls, folder: Path, dtype: torch.dtype, why: str) -> FallbackDecoder:
        """Read a Hugging Face folder that the decoder cannot run; `why` says why not.

        Raises `BrokenInputError` when transformers is not installed, cannot read the folder or would have to make
        weights up.
        """
        try:
            from transformers import AutoModelForCausalLM
        except ImportError as error:
            raise BrokenInputError(
                f"{folder}: {why}; install ponder[transformers] to run other architectures"
            ) from error
        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BrokenInputError(f"{folder}: {why}, and transformers cannot read it: {reason}") from error
        wrong = sorted(found["missing_keys"]) + sorted(map(str, found["mismatched_keys"]))
        if wrong:
            raise BrokenInputError(f"the weights in {folder} lack or misshape {', '.join(wrong[:3])}")
        return cls(model)

    @property
    def head_weight(self) -> Tensor:
        """(V, d): turns final hidden states into logits."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    def hidden(self, tokens: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """tokens (N,), positions (N,) -> final, normalised hidden states (N, d)."""
        with _attending(attention):
            out = self.model.base_model(
                input_ids=tokens.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False
            )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def save(self, folder: Path, max_shard_bytes: int) -> None:
        """Write config.json and the weights into an existing folder."""
        self.model.save_pretrained(folder, max_shard_size=max_shard_bytes)
        # the name of our attention means nothing to whoever opens the folder
        path = folder / "config.json"
        raw = {k: v for k, v in json.loads(path.read_text()).items() if not k.endswith("attn_implementation")}
        path.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")

    def _refuse_windows(self, name: str) -> None:
        window = getattr(self.model.config, "sliding_window", None)
        if window is not None and window < self.config.max_positions:
            raise BrokenInputError(f"{name} attends in windows of {window} tokens, which Ponder does not implement")

    @torch.no_grad()
    def _probe(self, name: str) -> None:
        device = self.head_weight.device
        rows = [torch.arange(length, device=device) % self.config.vocab_size for length in _PROBE_LENGTHS]
        expected = torch.cat([self.model(input_ids=row.unsqueeze(0), use_cache=False).logits[0] for row in rows])
        packing = Packing.of_lengths(_PROBE_LENGTHS).to(device)
        try:
            self.model.set_attn_implementation(_NAME)
            hidden = self.hidden(torch.cat(rows), packing.positions, PackedAttention(packing))
            found = F.linear(hidden, self.head_weight)
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise BrokenInputError(f"{name} cannot be run through Ponder's attention: {error}") from error
        tolerance = 1e-3 if expected.dtype == torch.float32 else 5e-2
        if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())):
            raise BrokenInputError(f"{name} does more than Ponder's decoder interface can express: its logits differ")


def _config(c: Any) -> DecoderConfig:
    """The part of a `PretrainedConfig` that engines and trainers ask for; its attribute map makes the names uniform."""
    heads, eos = c.num_attention_heads, c.eos_token_id
    return DecoderConfig(
        family=c.model_type,
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        intermediate_size=getattr(c, "intermediate_size", None) or 4 * c.hidden_size,
        num_layers=c.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=getattr(c, "num_key_value_heads", None) or heads,
        head_dim=getattr(c, "head_dim", None) or c.hidden_size // heads,
        max_positions=c.max_position_embeddings,
        tied_embeddings=c.tie_word_embeddings,
        eos_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        bos_id=c.bos_token_id,
        pad_id=c.pad_token_id,
    )


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(_NAME, _attend)
    # who sees whom is the business of the Attention object
    AttentionMaskInterface.register(_NAME, lambda *_, **__: None)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, scaling: float | None = None, **__: Any
) -> tuple[Tensor, None]:
    """transformers' attention function: q (1, Hq, N, D), k and v (1, Hkv, N, D) -> (1, N, Hq, D)."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if scaling is not None:
        q = q * (scaling * math.sqrt(q.shape[-1]))  # our attention divides by sqrt(D) itself
    layer: Any = module.layer_idx
    out = _attention.get()(layer, q, k, v)
    return out.view(1, q.shape[0], q.shape[1], -1), None


@contextmanager
def _attending(attention: Attention) -> Iterator[None]:
    token = _attention.set(attention)
    try:
        yield
    finally:
        _attention.reset(token)


def _without_dropout(model: nn.Module) -> None:
    """Sampling and training must see the same function, or log-probabilities would not agree."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
