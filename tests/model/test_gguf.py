"""GGUF: files written with the gguf library against the model they were written from, and SmolLM2 as it is found."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Backend

from ponder.errors import BrokenInputError
from ponder.model.config import DecoderConfig
from ponder.model.decoder import Decoder, interleave
from ponder.model.folder import LoadedModel, to_hf_tensors
from ponder.model.gguf import load_gguf
from ponder.model.load import load_model
from ponder.model.tokenizer import Tokenizer
from ponder.rollout.base import Request, Sampling
from ponder.rollout.native import NativeEngine

SHAPE = {
    "vocab_size": 480,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def make(family: str, **changes: Any) -> Decoder:
    decoder = Decoder(DecoderConfig.from_hf({**SHAPE, "model_type": family, "eos_token_id": [1], **changes}))
    decoder.initialise(3)
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))), alpha=0.3)
    return decoder


def write_gguf(path: Path, decoder: Decoder, kind: Callable[[str], gguf.GGMLQuantizationType], **extra: Any) -> Path:
    """What llama.cpp's converter would make of the decoder, with the tokenizer of a trained one."""
    c = decoder.config
    writer = gguf.GGUFWriter(path, c.family)
    writer.add_block_count(c.num_layers)
    writer.add_context_length(c.max_positions)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_heads)
    writer.add_head_count_kv(c.num_kv_heads)
    writer.add_key_length(c.head_dim)
    writer.add_layer_norm_rms_eps(c.rms_eps)
    writer.add_rope_freq_base(c.rope_theta)
    tokenizer = Tokenizer.train(["some words"], 480)
    model = json.loads(tokenizer.backend.to_str())["model"]
    writer.add_tokenizer_model(extra.get("tokenizer", "gpt2"))
    writer.add_tokenizer_pre(extra.get("pre", "gpt-2"))
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_token_list(tokens)
    writer.add_token_merges([" ".join(m) for m in model["merges"]])
    writer.add_token_types([3 if i < 2 else 4 if i < 6 else 1 for i in range(len(tokens))])
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    if "bos" in extra:
        writer.add_bos_token_id(extra["bos"])
    if "add_bos" in extra:
        writer.add_add_bos_token(extra["add_bos"])
    for name, tensor in to_hf_tensors(decoder).items():
        stem, _, suffix = name.rpartition(".")
        layer = stem.removeprefix("model.layers.").split(".", 1) if stem.startswith("model.layers.") else None
        theirs = f"blk.{layer[0]}.{NAMES[layer[1]]}.{suffix}" if layer else f"{NAMES[stem]}.{suffix}"
        if c.family == "llama" and stem.endswith(("q_proj", "k_proj")):
            tensor = interleave(tensor, c.head_dim)
        wanted = kind(theirs) if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(theirs, gguf.quants.quantize(tensor.numpy(), wanted), raw_dtype=wanted)
    for name, array in extra.get("tensors", {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(decoder: Decoder) -> torch.Tensor:
    ids = torch.randint(0, 480, (2, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return decoder.logits(ids)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"tie_word_embeddings": False}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"tie_word_embeddings": True, "head_dim": 32}),
    ],
)
def test_each_family_in_float32_is_the_model_it_was_written_from(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    decoder = make(family, **changes)
    loaded = load_gguf(write_gguf(tmp_path / "m.gguf", decoder, lambda _: gguf.GGMLQuantizationType.F32))
    assert loaded.config == replace(decoder.config, pad_id=0, initializer_range=0.02)
    torch.testing.assert_close(logits(loaded.decoder), logits(decoder), rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "error"), [("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 1e-2), ("Q4_1", 0.2)])
def test_quantised_weights_are_read_to_their_precision(kind: str, error: float, tmp_path: Path) -> None:
    decoder = make("llama")
    loaded = load_gguf(write_gguf(tmp_path / "m.gguf", decoder, lambda _: gguf.GGMLQuantizationType[kind]))
    for name, weight in decoder.state_dict().items():
        found = loaded.decoder.state_dict()[name]
        assert found.dtype == torch.float32
        assert float((found - weight).abs().max() / weight.abs().max()) < error, name


def test_the_rope_table_of_llama_3_becomes_its_scaling(tmp_path: Path) -> None:
    decoder = make("llama", rope_theta=500000.0, rope_scaling=LLAMA3)
    plain = make("llama", rope_theta=500000.0)
    divisors = (plain.rotations[1].angle() / decoder.rotations[1].angle()).numpy().astype(np.float32)
    path = write_gguf(
        tmp_path / "m.gguf",
        decoder,
        lambda _: gguf.GGMLQuantizationType.F32,
        tensors={"rope_freqs.weight": divisors},
    )
    loaded = load_gguf(path)
    torch.testing.assert_close(loaded.decoder.rotations, decoder.rotations, rtol=0, atol=1e-5)


def test_tokenizer_of_a_file(tmp_path: Path) -> None:

    def half(_: str) -> gguf.GGMLQuantizationType:
        return gguf.GGMLQuantizationType.F16

    path = write_gguf(tmp_path / "m.gguf", make("llama"), half, bos=0, add_bos=True)
    tokenizer = load_gguf(path).tokenizer
    assert (tokenizer.eos_ids, tokenizer.pad_id, tokenizer.bos_id) == ((1,), 0, 0)
    ids = tokenizer.encode("<think>some words é 汉</think><|end|>")
    assert tokenizer.decode(ids) == "<think>some words é 汉</think>"
    assert tokenizer.encode_prompt("some") == [0, *tokenizer.encode("some")]
    # where the file does not say, only Llama 3 opens its texts
    for pre, opening in (("gpt-2", []), ("llama-bpe", [0])):
        silent = load_gguf(write_gguf(tmp_path / f"{pre}.gguf", make("llama"), half, bos=0, pre=pre)).tokenizer
        assert silent.encode_prompt("some") == [*opening, *silent.encode("some")]


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["I", "'ll", " pay", " 1234", "!", "\n  ", " é"]),
        ("smollm", ["I", "'ll", " pay", " ", "1", "2", "3", "4", "!", "\n  ", " é"]),
        ("llama-bpe", ["I", "'ll", " pay", " ", "123", "4", "!\n", "  ", " é"]),
        ("qwen2", ["I", "'ll", " pay", " ", "1", "2", "3", "4", "!\n", "  ", " é"]),
    ],
)
def test_texts_are_split_as_each_family_splits_them(pre: str, pieces: list[str], tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", make("llama"), lambda _: gguf.GGMLQuantizationType.F16, pre=pre)
    backend = load_gguf(path).tokenizer.backend
    text = "I'll pay 1234!\n   é"
    spans = [span for _, span in backend.pre_tokenizer.pre_tokenize_str(text)]
    assert [text[a:b] for a, b in spans] == pieces
    composed = backend.normalizer is not None and backend.normalizer.normalize_str("e\u0301") == "é"
    assert composed == (pre == "qwen2")


def test_unreadable_files_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "junk.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(BrokenInputError, match="not a GGUF file or is damaged"):
        load_gguf(tmp_path / "junk.gguf")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(BrokenInputError, match="not a GGUF file or is damaged"):
        load_gguf(tmp_path / "text.gguf")
    with pytest.raises(BrokenInputError, match="there is no file"):
        load_gguf(tmp_path / "none.gguf")
    path = write_gguf(tmp_path / "m.gguf", make("llama"), lambda _: gguf.GGMLQuantizationType.F16, tokenizer="llama")
    with pytest.raises(BrokenInputError, match="tokenizer of kind llama/gpt-2"):
        load_gguf(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BrokenInputError, match="not a GGUF file or is damaged"):
        load_gguf(path)


# --- SmolLM2-135M-Instruct, Q4_1 with a Q8_0 embedding ---------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    try:
        return load_model("smollm2-135m")
    except BrokenInputError as error:
        pytest.skip(str(error))


def test_smollm2_knows_a_fact_and_when_to_stop(smollm2: LoadedModel) -> None:
    tokenizer = smollm2.tokenizer
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}])
    assert prompt.startswith("<|im_start|>system\n")
    assert prompt.endswith("<|im_start|>assistant\n")
    request = Request(tuple(tokenizer.encode_prompt(prompt)), "france")
    sampling = Sampling(max_tokens=12, temperature=0, stop_ids=tokenizer.eos_ids)
    ((completion,),) = NativeEngine(smollm2.decoder).generate([request], sampling, seed=0)
    assert tokenizer.decode(completion.ids, skip_special=False) == "The capital of France is Paris.<|im_end|>"
    assert all(-10 < logprob <= 0 for logprob in completion.logprobs)


def test_smollm2_spells_as_its_authors_tokenizer_does(smollm2: LoadedModel) -> None:
    # ids of HuggingFaceTB/SmolLM2-135M-Instruct's own tokenizer.json: single digits, GPT-2's splitting
    tokenizer = smollm2.tokenizer
    assert tokenizer.vocab_size == smollm2.config.vocab_size == 49152
    spelled = [tokenizer.decode([i]) for i in tokenizer.encode("It's 1234 apples,  don't\n\n\tyou think?")]
    assert spelled[:8] == ["It", "'s", " ", "1", "2", "3", "4", " apples"]
    assert "".join(spelled) == "It's 1234 apples,  don't\n\n\tyou think?"
    assert isinstance(tokenizer.backend, Backend)


@pytest.mark.slow
@pytest.mark.timeout(900)  # transformers takes minutes to read the file on a busy core
def test_smollm2_equals_the_reading_of_transformers(smollm2: LoadedModel) -> None:
    transformers = pytest.importorskip("transformers")
    from ponder.model.load import resolve

    path = resolve("smollm2-135m")
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    text = "The capital of France is Paris. 12 + 345 = 357, isn't it?\n\n汉字 é"
    ids = smollm2.tokenizer.encode(text)
    assert ids == theirs.encode(text)
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids])).logits
        torch.testing.assert_close(smollm2.decoder.logits(torch.tensor([ids])), expected, rtol=0, atol=1e-3)
