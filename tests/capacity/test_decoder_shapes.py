"""How large models are, against the totals that the Hub shows for their weights."""

import pytest

from ponder.capacity.shapes import PUBLIC_CONFIGS, public_shape, reward_shape, shape_of_config
from ponder.errors import BrokenInputError


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("HuggingFaceTB/SmolLM2-135M", 134_515_008),
        ("Qwen/Qwen2.5-1.5B", 1_543_714_304),
        ("Qwen/Qwen2.5-Math-7B", 7_615_616_512),
        ("Qwen/Qwen2.5-14B", 14_770_033_664),
        ("Qwen/Qwen2.5-32B", 32_763_876_352),
        ("Qwen/Qwen3-32B", 32_762_123_264),
        ("Qwen/Qwen3-30B-A3B", 30_532_122_624),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("meta-llama/Llama-3.3-70B-Instruct", 70_553_706_496),
        ("deepseek-ai/DeepSeek-V3-Base", 671_026_419_200),
    ],
)
def test_parameters_equal_the_published_totals(name: str, parameters: int) -> None:
    shape = public_shape(name)
    assert shape is not None
    assert shape.parameters == parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-32B", 32_763_876_352 - 152_064 * 5120 + 5120),
        ("Qwen/Qwen2.5-1.5B", 1_543_714_304 + 1536),  # its head was the table of the embeddings
    ],
)
def test_a_reward_model_has_a_scalar_head_in_the_place_of_the_vocabularys(name: str, parameters: int) -> None:
    shape = public_shape(name)
    assert shape is not None
    found = reward_shape(shape)
    assert found.parameters == found.active_parameters == parameters
    embeddings = shape.vocabulary * shape.hidden
    assert found.matmul_parameters == parameters - embeddings
    assert found.layer_parameters == shape.layer_parameters


@pytest.mark.parametrize(
    ("name", "billions"),
    [("deepseek-ai/DeepSeek-V3", 37), ("Qwen/Qwen3-30B-A3B", 3.3), ("Qwen/Qwen3-235B-A22B", 22)],
)
def test_active_parameters_are_those_of_the_model_cards(name: str, billions: float) -> None:
    shape = public_shape(name)
    assert shape is not None
    assert shape.active_parameters / 1e9 == pytest.approx(billions, rel=0.02)
    assert shape.matmul_parameters < shape.active_parameters < shape.parameters


def test_cache_of_a_token() -> None:
    values = {name: public_shape(name).cache_values_per_token for name in PUBLIC_CONFIGS}  # type: ignore[union-attr]
    assert values["meta-llama/Llama-3.1-8B"] == 2 * 32 * 8 * 128
    assert values["Qwen/Qwen2.5-7B"] == 2 * 28 * 4 * 128
    assert values["deepseek-ai/DeepSeek-V3"] == 61 * (512 + 64)  # latent attention keeps one vector a layer


def test_a_step_reads_the_experts_that_its_tokens_meet() -> None:
    shape = public_shape("Qwen/Qwen3-30B-A3B")
    dense = public_shape("Qwen/Qwen2.5-7B")
    assert shape is not None and dense is not None
    assert shape.parameters_read(1) == pytest.approx(shape.active_parameters)
    # two tokens: 8 of 128 experts each, drawn alike: 1 - (120 / 128)^2 of them
    untouched = (120 / 128) ** 2
    assert shape.parameters_read(2) == pytest.approx(shape.parameters - untouched * shape.expert_parameters)
    assert shape.parameters_read(10_000) == pytest.approx(shape.parameters)
    assert dense.parameters_read(0.5) == dense.parameters


def test_an_unknown_model_and_a_garbled_config() -> None:
    assert public_shape("someone/unknown") is None
    with pytest.raises(BrokenInputError, match="first_k_dense_replace"):
        shape_of_config(
            {"model_type": "deepseek_v3", "hidden_size": 1, "num_hidden_layers": 1, "num_attention_heads": 1}, "x"
        )
    with pytest.raises(BrokenInputError, match="mamba"):
        shape_of_config({"model_type": "mamba"}, "x")
