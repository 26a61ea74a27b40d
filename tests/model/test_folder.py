"""Hugging Face folders against transformers: what it writes loads here and the other way round, with equal logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ponder.errors import BrokenInputError
from ponder.model import folder as folder_module
from ponder.model.config import DecoderConfig
from ponder.model.decoder import Decoder
from ponder.model.folder import load_folder, save_folder
from ponder.model.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

SHAPE = {
    "vocab_size": 512,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": 0,
    # large weights: an error in any of them must show in the logits
    "initializer_range": 0.3,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, untied, many heads": ("Llama", {"tie_word_embeddings": False, "num_key_value_heads": 6}),
    "llama 3 scaling": ("Llama", {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-5}),
    "llama, linear scaling": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}, "head_dim": 16},
    ),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, untied": ("Qwen2", {"tie_word_embeddings": False}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3, untied": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": False}),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["some words, some more words"], 470)


def reference_model(name: str) -> Any:
    """A transformers model with random weights, norms and biases included."""
    family, changes = MODELS[name]
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for parameter_name, parameter in model.named_parameters():
        if "norm" in parameter_name or parameter_name.endswith("bias"):
            torch.nn.init.normal_(parameter, 1.0 if "norm" in parameter_name else 0.0, 0.5)
    return model


def reference_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def our_logits(decoder: Decoder, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return decoder.logits(ids)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 512, (3, 100), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def saved(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A small llama as transformers writes it."""
    return write(reference_model("llama, untied, many heads"), tokenizer, tmp_path / "theirs")


def write(model: Any, tokenizer: Tokenizer, path: Path, **options: Any) -> Path:
    model.save_pretrained(path, **options)
    tokenizer.save(path)
    return path


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_transformers_both_ways(
    name: str, tokenizer: Tokenizer, ids: torch.Tensor, tmp_path: Path
) -> None:
    model = reference_model(name)
    expected = reference_logits(model, ids)
    assert expected.std() > 0.5  # a comparison of nearly equal numbers would prove nothing
    loaded = load_folder(write(model, tokenizer, tmp_path / "theirs"))
    torch.testing.assert_close(our_logits(loaded.decoder, ids), expected, rtol=0, atol=1e-4)

    save_folder(tmp_path / "ours", loaded.decoder, loaded.tokenizer, loaded.generation)
    again, found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert again.dtype == torch.float32
    torch.testing.assert_close(reference_logits(again, ids), expected, rtol=0, atol=0)
    if not name.startswith("qwen2"):  # for which transformers brings word splitting of its own: see Tokenizer.save
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
        assert theirs.encode("words 17") == tokenizer.encode("words 17")


def test_our_own_weights_come_back_bit_for_bit_in_shards_and_whole(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = DecoderConfig.from_hf({**SHAPE, "model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": False})
    decoder = Decoder(config)
    decoder.initialise(0)
    for limit, num_files in ((60_000, 4), (10**9, 1)):
        save_folder(tmp_path / "model", decoder, tokenizer, max_shard_bytes=limit)
        files = list((tmp_path / "model").glob("*.safetensors"))
        assert len(files) >= num_files if num_files > 1 else len(files) == 1
        loaded = load_folder(tmp_path / "model")
        assert loaded.config == config
        for name, weight in decoder.state_dict().items():
            torch.testing.assert_close(loaded.decoder.state_dict()[name], weight, rtol=0, atol=0)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_shards_of_transformers_load_here_and_ours_there(
    tokenizer: Tokenizer, ids: torch.Tensor, tmp_path: Path
) -> None:
    model = reference_model("qwen2, untied")
    loaded = load_folder(write(model, tokenizer, tmp_path / "theirs", max_shard_size="100KB"))
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    torch.testing.assert_close(our_logits(loaded.decoder, ids), reference_logits(model, ids), rtol=0, atol=1e-4)
    save_folder(tmp_path / "ours", loaded.decoder, tokenizer, max_shard_bytes=100_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(reference_logits(again, ids), reference_logits(model, ids), rtol=0, atol=0)


def test_bfloat16_is_read_and_written_as_such(tokenizer: Tokenizer, tmp_path: Path, saved: Path) -> None:
    loaded = load_folder(saved, torch.bfloat16)
    save_folder(tmp_path / "half", loaded.decoder, tokenizer)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {t.dtype for t in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.bfloat16}


def test_generation_settings_and_unknown_config_keys_are_kept(
    tokenizer: Tokenizer, tmp_path: Path, saved: Path
) -> None:
    (saved / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.95, "eos_token_id": [1, 7]}')
    raw = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**raw, "origin": "elsewhere"}))
    loaded = load_folder(saved)
    assert loaded.tokenizer.eos_ids == (1, 7)
    save_folder(tmp_path / "again", loaded.decoder, loaded.tokenizer, loaded.generation)
    again = load_folder(tmp_path / "again")
    assert again.generation["temperature"] == 0.6
    assert again.tokenizer.eos_ids == (1, 7)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["origin"] == "elsewhere"


def test_wrong_tensors_are_named(saved: Path) -> None:
    path = saved / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"

    def complaint(changed: dict[str, torch.Tensor]) -> str:
        save_file(changed, path)
        with pytest.raises(BrokenInputError) as caught:
            load_folder(saved)
        return str(caught.value)

    assert f"lack {name}" in complaint({k: v for k, v in tensors.items() if k != name})
    assert "hold model.layers.7.surprise" in complaint({**tensors, "model.layers.7.surprise": torch.zeros(1)})
    assert f"{name} has shape (1, 48)" in complaint({**tensors, name: torch.zeros(1, 48)})
    assert "and 6 more" in complaint({k: v for k, v in tensors.items() if not k.startswith("model.layers.0.")})
    # tables that follow from the config do no harm
    save_file({**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}, path)
    load_folder(saved)


def test_a_stored_head_that_is_tied_anyway_does_no_harm(
    tokenizer: Tokenizer, ids: torch.Tensor, tmp_path: Path
) -> None:
    model = reference_model("llama, tied")
    path = write(model, tokenizer, tmp_path) / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path)
    torch.testing.assert_close(
        our_logits(load_folder(tmp_path).decoder, ids), reference_logits(model, ids), rtol=0, atol=1e-4
    )


def test_damaged_and_missing_files_are_one_sentence(saved: Path, tmp_path: Path) -> None:
    weights = saved / "model.safetensors"
    whole = weights.read_bytes()

    def complaint() -> str:
        with pytest.raises(BrokenInputError) as caught:
            load_folder(saved)
        return str(caught.value)

    weights.write_bytes(whole[:1000])
    assert "damaged" in complaint()
    weights.unlink()
    assert "holds no model.safetensors" in complaint()
    (saved / "pytorch_model.bin").write_bytes(b"pickle")
    assert "convert them to safetensors" in complaint()
    index = saved / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}))
    assert "no valid weight_map" in complaint()
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "gone.safetensors"}}))
    assert "missing or damaged" in complaint()
    index.unlink()
    weights.write_bytes(whole)
    (saved / "config.json").write_text("{")
    assert "is not a JSON file" in complaint()
    (saved / "config.json").unlink()
    assert "has no config.json" in complaint()
    with pytest.raises(BrokenInputError, match="is not a folder"):
        load_folder(tmp_path / "nowhere")


def test_a_failed_write_leaves_the_older_folder_whole(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(DecoderConfig.from_hf({**SHAPE, "model_type": "llama"}))
    decoder.initialise(0)
    target = tmp_path / "model"
    (tmp_path / ".model.new").mkdir()  # left by a killed process
    save_folder(target, decoder, tokenizer)
    before = {p.name: p.read_bytes() for p in target.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module, "save_file", full)
    decoder.initialise(1)
    with pytest.raises(BrokenInputError, match="No space left on device"):
        save_folder(target, decoder, tokenizer)
    assert {p.name: p.read_bytes() for p in target.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
