"""Exports against what they are made for: transformers and llama.cpp load them, and say the same."""

import json
import math
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers

from ponder.errors import PonderError, UsageError
from ponder.model import gguf_writer
from ponder.model.config import DecoderConfig
from ponder.model.decoder import Decoder
from ponder.model.export import (
    TOLERANCES,
    ExportFacts,
    ExportMismatchError,
    ExportSettings,
    changed_files,
    chat_template,
    export_model,
    read_export,
)
from ponder.model.folder import LoadedModel, load_folder, to_hf_tensors
from ponder.model.formats import Format, WeightType
from ponder.model.gguf import STYLES, gguf_name, load_gguf, read_metadata
from ponder.model.gguf_writer import PROBES, splitting_style, write_gguf
from ponder.model.load import load_model
from ponder.model.parser import split_thinking
from ponder.model.templates import render
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
    "max_position_embeddings": 512,
    "eos_token_id": 1,
    "pad_token_id": 0,
    # large weights: an error in any of them must show in the logits
    "initializer_range": 0.3,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "llama3": {"rope_scaling": LLAMA3, "rope_theta": 500000.0, "tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
}
PROMPTS = ("User: Compute 3 + 4 * 5.\nAssistant:", "User: 用 2、3、7 得到 13。\nAssistant:")


def made(name: str, **changes: Any) -> LoadedModel:
    """A small model with random weights, norms and biases included."""
    family = "llama" if name == "llama3" else name
    tokenizer = Tokenizer.train(["some words: 17 and more words"], 480)
    config = DecoderConfig.from_hf({**SHAPE, **FAMILIES[name], "model_type": family, **changes})
    decoder = Decoder(config)
    decoder.initialise(3)
    with torch.no_grad():
        for key, weight in decoder.named_parameters():
            if key.endswith(("norm.weight", "bias")):
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(key))), alpha=0.3)
    tokenizer.chat_template = chat_template("User: {prompt}\nAssistant:")
    return LoadedModel(decoder, tokenizer, config, {"temperature": 0.6, "top_p": 0.95, "top_k": 20})


def card(facts: ExportFacts) -> str:
    return f"# {facts.name}\n"


def export(
    model: LoadedModel, target: Path, format_: Format = "safetensors", weights: str = "F32", **options: Any
) -> ExportFacts:
    return export_model(model, target, ExportSettings(format_, WeightType(weights), "a model", **options), card)


def logits(model: LoadedModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.decoder.logits(torch.tensor([ids]))[0]


def greedy(model: LoadedModel, prompts: list[list[int]], count: int) -> list[list[int]]:
    requests = [Request(tuple(ids), str(i)) for i, ids in enumerate(prompts)]
    sampling = Sampling(max_tokens=count, temperature=0, stop_ids=model.tokenizer.eos_ids)
    return [list(group[0].ids) for group in NativeEngine(model.decoder).generate(requests, sampling, seed=0)]


# --- in transformers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FAMILIES, "mini-qwen"])
def test_transformers_loads_a_folder_and_says_the_same(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = made(name) if name in FAMILIES else load_model(name)
    prompts = [model.tokenizer.encode_prompt(text) for text in PROMPTS]
    expected, replies = [logits(model, ids) for ids in prompts], greedy(model, prompts, 24)
    facts = export(model, tmp_path / "export")
    assert facts.difference == 0
    assert len(facts.notes) == (name == "qwen2")

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    for ids, wanted, reply in zip(prompts, expected, replies, strict=True):
        with torch.no_grad():
            found = theirs(input_ids=torch.tensor([ids])).logits[0]
            said = theirs.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False, temperature=None,
                                   top_p=None, top_k=None)[0, len(ids):].tolist()  # fmt: skip
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
        assert said == reply
    if name in FAMILIES:
        assert theirs.generation_config.temperature == 0.6
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    if name != "qwen2":  # its note says why
        assert [tokenizer.encode(text) for text in PROBES] == [model.tokenizer.encode(text) for text in PROBES]
    if name in FAMILIES:
        messages = [{"role": "user", "content": 'the "first"'}, {"role": "assistant", "content": "x"},
                    {"role": "user", "content": "7 {braces}"}]  # fmt: skip
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text == "User: 7 {braces}\nAssistant:"


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_transformers_reads_the_gguf_file(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = made(name)
    ids = model.tokenizer.encode_prompt(PROMPTS[0])
    facts = export(model, tmp_path / "export", "gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export", gguf_file=facts.file)
    with torch.no_grad():
        found = theirs(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(found, logits(model, ids), rtol=0, atol=1e-3)


# --- in llama.cpp ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Played:
    """A model, what was asked of llama.cpp with its export, and what came out."""

    model: LoadedModel
    facts: ExportFacts
    prompts: list[list[int]]
    replies: list[list[int]]
    """Our own greedy ones."""
    scored: list[list[int]]
    out: dict[str, Any]


EXPORTS = [
    ("llama", "F32"), ("llama3", "F32"), ("qwen2", "F32"), ("qwen3", "F32"),
    ("mini", "F32"), ("mini", "F16"), ("mini", "Q8_0"), ("mini-qwen", "F16"), ("mini-llama", "F32"),
]  # fmt: skip
CONVERSATION = [{"role": "user", "content": 'How many "r"\\s are in {x}?'}]


def play(repository: Path, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    folder = repository / "tests" / "llama_cpp"
    if not (folder / "node_modules" / "node-llama-cpp").is_dir():
        pytest.skip("llama.cpp is not installed: make llama-cpp")
    done = subprocess.run(
        ["node", "llama.mjs"], cwd=folder, input=json.dumps(jobs), capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results


def prepare(model: LoadedModel, weights: str, folder: Path, tokens: int) -> tuple[Played, dict[str, Any]]:
    """Export a model, and the job for llama.cpp."""
    prompts = [model.tokenizer.encode_prompt(text) for text in PROMPTS]
    replies = greedy(model, prompts, tokens)
    scored = [ids + reply for ids, reply in zip(prompts, replies, strict=True)]
    if model.tokenizer.chat_template is None:
        model.tokenizer.chat_template = chat_template("User: {prompt}\nAssistant:")
    facts = export(model, folder, "gguf", weights)
    job = {
        "model": str(folder / facts.file),
        "texts": PROBES,
        "greedy": [{"ids": ids, "count": tokens} for ids in prompts],
        "scored": scored,
        "conversations": [CONVERSATION],
    }
    return Played(model, facts, prompts, replies, scored, {}), job


@pytest.fixture(scope="module")
def played(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Played]:
    """All exports, through one start of llama.cpp."""
    folder, ours, jobs = tmp_path_factory.mktemp("gguf"), [], []
    for name, weights in EXPORTS:
        model = made(name) if name in FAMILIES else load_model(name)
        one, job = prepare(model, weights, folder / f"{name}-{weights}", 24)
        ours.append(one)
        jobs.append(job)
    outs = play(repository, jobs)
    return {key: replace(one, out=out) for key, one, out in zip(EXPORTS, ours, outs, strict=True)}


@pytest.mark.parametrize("key", EXPORTS, ids="-".join)
def test_llama_cpp_says_the_same(key: tuple[str, str], played: dict[tuple[str, str], Played]) -> None:
    one = played[key]
    assert one.out["tokens"] == [one.model.tokenizer.encode(text) for text in PROBES]
    assert one.out["prompts"] == [f"User: {CONVERSATION[0]['content']}\nAssistant:"]
    if key[1] in ("F32", "F16"):
        counts = [clear_tokens(one.model, *pair) for pair in zip(one.prompts, one.replies, strict=True)]
        assert sum(counts) >= 10
        found = [reply[:count] for reply, count in zip(one.out["greedy"], counts, strict=True)]
        assert found == [reply[:count] for reply, count in zip(one.replies, counts, strict=True)]
        if key[0] not in FAMILIES:  # no near tie in what a trained model says
            assert one.out["greedy"] == one.replies
    check_perplexity(one, {"F32": 0.01, "F16": 0.01, "Q8_0": 0.05}[key[1]])


def clear_tokens(model: LoadedModel, prompt: list[int], reply: list[int]) -> int:
    """Tokens of a greedy reply before the first near tie, which any other order of sums may decide otherwise."""
    best = logits(model, prompt + reply)[len(prompt) - 1 : -1].log_softmax(-1).topk(2).values
    near = (best[:, 0] - best[:, 1] < 0.02).nonzero()
    return int(near[0]) if len(near) else len(reply)


def check_perplexity(one: Played, band: float) -> None:
    """llama.cpp's perplexity of each text lies within a share of ours; its cache alone, in F16, costs some."""
    for ids, theirs in zip(one.scored, one.out["logprobs"], strict=True):
        ours = logits(one.model, ids).log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])
        ratio = math.exp(float(ours.mean()) - sum(theirs) / len(theirs))
        assert abs(ratio - 1) < band, ratio


def test_smollm2_goes_through_llama_cpp(repository: Path, tmp_path: Path) -> None:
    try:
        model = load_model("smollm2-135m")
    except PonderError as error:
        pytest.skip(str(error))
    one, job = prepare(model, "Q8_0", tmp_path / "smollm2", 12)
    job["conversations"] = []
    (out,) = play(repository, [job])
    assert out["tokens"] == [model.tokenizer.encode(text) for text in PROBES]
    check_perplexity(replace(one, out=out), 0.05)
    assert one.facts.notes == ()
    assert read_metadata(tmp_path / "smollm2" / one.facts.file)["tokenizer.ggml.pre"] == "smollm"


# --- the file -------------------------------------------------------------------------------------------------------


def test_what_travels_in_a_gguf_file(tmp_path: Path) -> None:
    model = made("qwen3")
    facts = export(model, tmp_path / "out", "gguf", "Q8_0", licence="apache-2.0")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "a-model-Q8_0.gguf", "README.md", "export.json", "generation_config.json", "chat_template.jinja"
    }  # fmt: skip
    metadata = read_metadata(tmp_path / "out" / facts.file)
    expected = {
        "general.name": "a model", "general.license": "apache-2.0", "general.sampling.top_k": 20,
        "qwen3.attention.key_length": 32, "qwen3.attention.value_length": 32,
        "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.padding_token_id": 0, "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": model.tokenizer.chat_template,
    }  # fmt: skip
    assert {key: metadata[key] for key in expected} == expected
    # special, special, four tags that stay in text, plain ones, and rows of the embedding that no token uses
    assert metadata["tokenizer.ggml.token_type"][:7] == [3, 3, 4, 4, 4, 4, 1]
    again = load_gguf(tmp_path / "out" / facts.file)
    assert again.config == replace(model.config, initializer_range=0.02)
    assert again.generation == pytest.approx(model.generation)


def test_rows_that_hold_no_whole_blocks_are_kept_in_f16(tmp_path: Path) -> None:
    model = made("llama", hidden_size=48, num_attention_heads=3, num_key_value_heads=1)
    write_gguf(tmp_path / "m.gguf", model, GGMLQuantizationType.Q8_0)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == "F16"  # 48 columns
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0"  # 96
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def test_unused_rows_of_the_embedding_have_names(tmp_path: Path) -> None:
    model = made("qwen3", vocab_size=512)
    facts = export(model, tmp_path / "out", "gguf")
    metadata = read_metadata(tmp_path / "out" / facts.file)
    assert metadata["tokenizer.ggml.tokens"][480:482] == ["[PAD480]", "[PAD481]"]
    assert metadata["tokenizer.ggml.token_type"][480] == 5


def test_every_tensor_has_a_name_in_gguf_of_its_own() -> None:
    for name in FAMILIES:
        names = list(to_hf_tensors(made(name).decoder))
        assert len({gguf_name(tensor) for tensor in names}) == len(names)
    assert gguf_name("model.layers.3.self_attn.q_proj.bias") == "blk.3.attn_q.bias"


def in_style(name: str) -> LoadedModel:
    """A model whose tokenizer splits texts in one of llama.cpp's styles."""
    model, style = made("llama"), STYLES[name]
    model.tokenizer.backend.pre_tokenizer = style.pieces()
    if style.composed:
        model.tokenizer.backend.normalizer = normalizers.NFC()
    return model


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2", "superbpe"])
def test_the_way_of_splitting_is_found_by_what_becomes_of_texts(name: str) -> None:
    # a vocabulary whose merges cross the borders of any style's pieces, so that each gives other tokens
    model = in_style(name)
    texts = [*PROBES, "1234 56789", "I'll pay  12, you", "foo  bar\n\n"]
    words = sorted({text[i:j] for text in texts for i in range(len(text)) for j in range(i + 2, min(len(text), i + 4))})
    raw = json.loads(model.tokenizer.backend.to_str())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = dict(sorted(raw["model"]["vocab"].items(), key=lambda item: item[1]))
    merges = []
    for word in words:
        spelled = byte_level.pre_tokenize_str(word)[0][0]
        left, right = spelled[:-1], spelled[-1]
        if left in vocabulary and right in vocabulary and spelled not in vocabulary:
            vocabulary[spelled] = len(vocabulary)
            merges.append([left, right])
    raw["model"] |= {"vocab": vocabulary, "merges": merges, "ignore_merges": STYLES[name].whole_words}
    wide = replace(model, config=replace(model.config, vocab_size=len(vocabulary)))
    wide.tokenizer.backend = wide.tokenizer.backend.from_str(json.dumps(raw))
    assert splitting_style(wide) == name


def test_a_way_of_splitting_that_llama_cpp_lacks_is_refused(tmp_path: Path) -> None:
    model = load_model("mini")
    split = pre_tokenizers.Split(Regex(r"[a-z]"), behavior="isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.tokenizer.backend.pre_tokenizer = pre_tokenizers.Sequence([split, plain])
    with pytest.raises(UsageError, match="no way of splitting texts that fits this tokenizer"):
        export(model, tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()


OWN = load_model("mini").tokenizer
STYLED = gguf_writer._vocabulary(load_model("mini"))
SUPERBPE = gguf_writer.byte_pairs(STYLED.tokens, STYLED.merges, STYLED.types, STYLES["superbpe"])


@given(st.text(st.sampled_from("ab zZ,.()[]  \n\t12é汉字你<|>-=+*'endthinks/😀"), max_size=40))
def test_our_tokenizer_and_llama_cpps_agree_on_all_but_long_numbers(text: str) -> None:
    short = re.sub(r"(\d{3})\d+", r"\1", text)
    assert SUPERBPE.encode(short, add_special_tokens=False).ids == OWN.encode(short)


# --- chat templates -------------------------------------------------------------------------------------------------


@given(
    st.text(max_size=30), st.sampled_from(["User: {prompt}\nAssistant:", "{prompt}", 'a "b" \\n {{x}} {prompt} %}é😀'])
)
def test_a_chat_template_is_the_prompt_template_with_the_last_question(asked: str, text: str) -> None:
    OWN.chat_template = chat_template(text)
    vars(OWN).pop("_compiled_template", None)
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "old"},
                {"role": "assistant", "content": "a"}, {"role": "user", "content": asked}]  # fmt: skip
    prompt = OWN.apply_chat_template(messages)
    assert prompt == render(text, asked, OWN)
    for variable in ("enable_thinking", "thinking"):
        closed = OWN.apply_chat_template(messages, **{variable: False})
        assert closed.startswith(prompt)
        split = split_thinking("the answer", prompt_tail=closed)
        assert (split.thinking, split.answer) == ("", "the answer")
        assert OWN.apply_chat_template(messages, **{variable: True}) == prompt


# --- what is refused, and what is kept ------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_export_that_differs_is_not_kept_and_the_older_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(made("llama"), tmp_path / "out", "gguf")
    before = files(tmp_path / "out")
    monkeypatch.setattr(gguf_writer, "interleave", lambda rows, head_dim: rows)  # q and k in the wrong order
    with pytest.raises(ExportMismatchError, match="logits differ from the model's by") as caught:
        export(made("llama"), tmp_path / "out", "gguf", "Q8_0")
    assert caught.value.exit_code == 1
    assert files(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_lost_end_token_and_other_tokens_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_writer.GGUFWriter, "add_eos_token_id", lambda self, value: None)
    with pytest.raises(ExportMismatchError, match="other end tokens"):
        export(made("llama"), tmp_path / "out", "gguf")
    monkeypatch.undo()
    monkeypatch.setattr(gguf_writer, "_style", lambda tokenizer, vocabulary: ("gpt-2", ()))
    with pytest.raises(ExportMismatchError, match="other tokens"):
        export(load_model("mini"), tmp_path / "out", "gguf")


@pytest.mark.parametrize(
    ("weights", "format_"), [("F16", "gguf"), ("BF16", "gguf"), ("Q8_0", "gguf"), ("BF16", "safetensors")]
)
def test_rounding_is_measured_and_far_from_its_tolerance(weights: str, format_: Format, tmp_path: Path) -> None:
    facts = export(load_model("mini"), tmp_path / "out", format_, weights)
    assert 0.02 < facts.difference / TOLERANCES[WeightType(weights)] < 0.8
    stored = read_export(tmp_path / "out")
    assert (stored["weights"], stored["difference"], stored["tokens"]) == (weights, facts.difference, facts.tokens)


def test_a_scaling_that_the_file_cannot_say_is_refused(tmp_path: Path) -> None:
    model = made("llama3", rope_scaling={**LLAMA3, "original_max_position_embeddings": 64})
    with pytest.raises(ExportMismatchError, match="logits differ"):
        export(model, tmp_path / "out", "gguf")


def test_numbers_that_f16_cannot_hold_are_refused(tmp_path: Path) -> None:
    for format_, error in (("gguf", UsageError), ("safetensors", ExportMismatchError)):
        model = made("llama")
        with torch.no_grad():
            next(w for n, w in model.decoder.named_parameters() if n.endswith("down.weight"))[0, 0] = 1e5
        with pytest.raises(error, match="--type"):
            export(model, tmp_path / "out", format_, "F16")
    with pytest.raises(UsageError, match="Q8_0 goes with --format gguf"):
        export(made("llama"), tmp_path / "out", "safetensors", "Q8_0")


def test_a_folder_in_use_is_refused_or_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"choose another folder with --to, or give --force, which keeps .* out\.old"):
        export(made("llama"), target)
    assert files(target) == {"thesis.txt": b"years of work"}
    for kept in ("out.old", "out.old-2"):
        export(made("llama"), target, force=True)
        assert load_folder(target).config == made("llama").config
        assert (tmp_path / kept).is_dir()
        (target / "README.md").write_text("edited")  # no longer what the export wrote
    assert files(tmp_path / "out.old") == {"thesis.txt": b"years of work"}
    assert (tmp_path / "out.old-2" / "README.md").read_text() == "edited"
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        export(made("llama"), tmp_path / "file", force=True)


def test_an_export_as_it_was_written_gives_way_to_the_next(tmp_path: Path) -> None:
    export(made("llama"), tmp_path / "out")
    assert changed_files(tmp_path / "out") == []
    export(made("qwen3"), tmp_path / "out")
    assert load_folder(tmp_path / "out").config.family == "qwen3"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "out" / "config.json").write_text("{}")
    (tmp_path / "out" / "notes").mkdir()
    assert changed_files(tmp_path / "out") == ["config.json", "notes"]
    with pytest.raises(UsageError, match="is no export"):
        read_export(tmp_path)


def test_a_failing_card_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(facts: ExportFacts) -> str:
        raise UsageError("the run's folder is gone")

    wrong: Callable[[ExportFacts], str] = fail
    with pytest.raises(UsageError, match="is gone"):
        export_model(made("llama"), tmp_path / "out", ExportSettings("safetensors", WeightType.F32, "m"), wrong)
    assert list(tmp_path.iterdir()) == []
