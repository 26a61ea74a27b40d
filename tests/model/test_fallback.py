"""Other architectures, through transformers: same interface, same engine, and a refusal where it does not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ponder.errors import BrokenInputError
from ponder.model.decoder import PackedAttention, Packing
from ponder.model.fallback import FallbackDecoder
from ponder.model.folder import load_folder, save_folder
from ponder.model.tokenizer import Tokenizer
from ponder.rollout.base import Request, Sampling
from ponder.rollout.native import NativeEngine

transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
GPT2 = {"vocab_size": 512, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
GPT2 |= {"bos_token_id": None, "eos_token_id": 1, "resid_pdrop": 0.5}


def make(family: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    shape = GPT2 if family == "GPT2" else SMALL
    config = getattr(transformers, f"{family}Config")(**{**shape, **changes})
    name = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    return getattr(transformers, name)(config).eval()


def stored(model: Any, path: Path) -> Path:
    model.save_pretrained(path)
    Tokenizer.train(["words"], 470).save(path)
    return path


@pytest.mark.parametrize("family", ["GPT2", "Olmo2", "Granite"])
def test_other_architectures_share_the_interface(family: str, tmp_path: Path) -> None:
    changes = {"attention_multiplier": 0.1} if family == "Granite" else {}
    model = make(family, **changes)
    ids = torch.randint(0, 512, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    decoder = load_folder(stored(model, tmp_path / "theirs")).decoder
    assert isinstance(decoder, FallbackDecoder)
    decoder.train()  # dropout must stay out of it
    with torch.no_grad():
        torch.testing.assert_close(decoder.logits(ids), expected, rtol=0, atol=1e-4)

    # sequences packed side by side do not see each other
    packing = Packing.of_lengths([15, 40])
    tokens = torch.cat([ids[0, :15], ids[1]])
    with torch.no_grad():
        hidden = decoder.hidden(tokens, packing.positions, PackedAttention(packing))
    packed = torch.nn.functional.linear(hidden, decoder.head_weight)
    torch.testing.assert_close(packed, torch.cat([expected[0, :15], expected[1]]), rtol=0, atol=1e-4)

    # the engine samples from it, with a cache
    (group,) = NativeEngine(decoder).generate([Request(tuple(ids[0, :8].tolist()), "k", 2)], Sampling(12), seed=0)
    for completion in group:
        whole = torch.tensor([ids[0, :8].tolist() + completion.ids])
        with torch.no_grad():
            logprobs = decoder.logits(whole)[0, 7:-1].log_softmax(-1)
        found = logprobs.gather(1, torch.tensor(completion.ids)[:, None]).squeeze(1)
        torch.testing.assert_close(found, torch.tensor(completion.logprobs), rtol=0, atol=1e-4)

    save_folder(tmp_path / "ours", decoder, Tokenizer.train(["words"], 470))
    assert "ponder" not in (tmp_path / "ours" / "config.json").read_text()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, expected, rtol=0, atol=1e-5)


def test_gradients_reach_every_weight(tmp_path: Path) -> None:
    decoder = load_folder(stored(make("Olmo2"), tmp_path)).decoder
    decoder.logits(torch.arange(20).view(2, 10)).logsumexp(-1).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in decoder.parameters())


def test_a_variant_that_the_decoder_lacks_falls_back(tmp_path: Path) -> None:
    model = make("Llama", mlp_bias=True, tie_word_embeddings=False)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.mlp.down_proj.bias)
    decoder = load_folder(stored(model, tmp_path)).decoder
    assert isinstance(decoder, FallbackDecoder)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(decoder.logits(ids), model(input_ids=ids).logits, rtol=0, atol=1e-4)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BrokenInputError, match="logits differ"):  # logits scaled down behind the head
        load_folder(stored(make("Granite", logits_scaling=3.0), tmp_path / "granite"))
    with pytest.raises(BrokenInputError, match="windows of 16 tokens"):
        load_folder(stored(make("Mistral", sliding_window=16), tmp_path / "mistral"))
    with pytest.raises(BrokenInputError, match="logits differ"):  # a state that runs on from sequence to sequence
        load_folder(stored(make("Mamba", num_hidden_layers=1), tmp_path / "mamba"))


def test_unknown_architectures_and_missing_weights_are_one_sentence(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = stored(make("Olmo2"), tmp_path / "m")
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(BrokenInputError, match=name):
        load_folder(path)
    (path / "config.json").write_text('{"model_type": "dreamt-up"}')
    with pytest.raises(BrokenInputError, match="'dreamt-up' is none of llama"):
        load_folder(path)
