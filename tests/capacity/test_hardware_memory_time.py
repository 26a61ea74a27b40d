"""Memory and time against sums worked by hand, on a device with round numbers."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.capacity.assumptions import Assumptions, parse_assumptions
from ponder.capacity.estimate import step_on
from ponder.capacity.hardware import DEVICES, Device, parse_cluster
from ponder.capacity.jobs import Judge, JudgePlace, Layout, Lengths, RolloutJob, TrainingJob, lora_parameters
from ponder.capacity.memory import LOGITS, SCORED_TOKENS, judge_bytes, rollout_memory, training_memory
from ponder.capacity.shapes import DecoderShape, public_shape
from ponder.capacity.timing import handover_s, rollout_time, update_time
from ponder.capacity.workload import Workload
from ponder.errors import UsageError
from ponder.recipe import LoraSettings

ROUND = Device("round", 1e12, 1e11, 1e9, 1e10, 1e9, 1e8, 8, "made up")
TINY = DecoderShape(
    name="tiny",
    parameters=1_000_000,
    active_parameters=1_000_000,
    matmul_parameters=900_000,
    layers=10,
    hidden=100,
    feed_forward=200,
    query_width=100,
    cache_width=50,
    vocabulary=1000,
    table_parameters=200_000,
)
EXACT = Assumptions(mfu=1, decode_bandwidth=1, links=1, engine_step_s=0, collective_s=0, usable_memory=1)
"""Nothing lost anywhere: what remains are the counts."""


def llama() -> DecoderShape:
    shape = public_shape("meta-llama/Llama-3.1-8B")
    assert shape is not None
    return shape


# --- memory --------------------------------------------------------------------------------------------------------


def test_training_an_8b_on_eight_ranks() -> None:
    job = TrainingJob(512, Lengths(200, 1000, 4000), tokens_per_micro_batch=8192, checkpointing=True)
    memory = training_memory(llama(), job, 8)
    assert memory.weights_bytes == memory.gradients_bytes == 4 * 8_030_261_248 / 8
    assert memory.moments_bytes == 8 * 8_030_261_248 / 8
    assert memory.kept_bytes == pytest.approx(16.06e9, rel=1e-3)
    # bf16: 32 inputs of blocks, and one block whole: 4 x 4096 + 2 x 4096 + 2048 + 4 x 14336 values a token
    assert memory.activations_bytes == 2 * 8192 * (32 * 4096 + 83_968)
    # two layers of 218,112,128 parameters (an end norm is spread over them) and two tables of 128,256 x 4,096
    assert memory.gathered_bytes == 2 * (2 * 218_112_128 + 2 * 525_336_576)
    assert memory.references_bytes == 0
    assert memory.logits_bytes == 3 * 256 * 2**20  # three chunks of 256 MiB in fp32
    assert memory.total_bytes == pytest.approx(23.36e9, rel=1e-3)


def test_what_changes_the_memory_of_training() -> None:
    job = TrainingJob(512, Lengths(200, 1000, 4000))
    base = training_memory(TINY, job, 4)
    assert training_memory(TINY, replace(job, sharding="ddp"), 4).kept_bytes == 4 * base.kept_bytes
    assert training_memory(TINY, replace(job, moments=1), 4).moments_bytes == base.moments_bytes / 2
    assert training_memory(TINY, replace(job, references=(TINY,)), 4).references_bytes == base.weights_bytes
    assert training_memory(TINY, replace(job, arithmetic_bytes=4), 4).activations_bytes == 2 * base.activations_bytes
    # without checkpointing all ten blocks are kept whole: 4 x 100 + 2 x 100 + 50 + 4 x 200 values each
    assert base.activations_bytes == 2 * 8192 * 10 * 1450
    # a sequence is never cut: 200 + 20,000 tokens are one micro-batch, however small the budget
    long = replace(job, lengths=Lengths(200, 1000, 20_000))
    assert training_memory(TINY, long, 4).activations_bytes == 2 * 20_200 * 10 * 1450


def test_lora_trains_adapters_and_keeps_the_rest_frozen() -> None:
    lora = LoraSettings(rank=2)
    # q, k, v: 100 + 150; out: 200; gate and up: 100 + 400; down: 300
    assert lora_parameters(TINY, lora) == 10 * 2 * (250 + 200 + 500 + 300)
    memory = training_memory(TINY, TrainingJob(8, Lengths(0, 10, 10), lora=lora), 1)
    assert memory.gradients_bytes == 4 * 25_000
    assert memory.weights_bytes == 4 * (25_000 + 1_000_000)
    nf4 = TrainingJob(8, Lengths(0, 10, 10), lora=LoraSettings(rank=2, quantise="nf4"))
    assert training_memory(TINY, nf4, 1).weights_bytes == 4 * 25_000 + 0.5 * 1_000_000


def test_logits_held_at_a_time_are_those_of_the_trainer() -> None:
    from ponder.training import logprobs

    assert logprobs._ACCELERATOR_CHUNK_LOGITS == LOGITS
    # no more than a micro-batch has: 8 sequences of 10 tokens
    assert training_memory(TINY, TrainingJob(8, Lengths(0, 10, 10)), 1).logits_bytes == 3 * 4 * 80 * 1000


def test_a_reward_model_by_hand() -> None:
    from ponder.model.reward_model import SCORING_BUDGET

    assert SCORED_TOKENS == SCORING_BUDGET
    job = TrainingJob(64, Lengths(200, 1000, 4000), judges=(Judge(TINY),))
    # in bf16; a token holds twice the width of 100 and three times the inner 200
    assert judge_bytes(Judge(TINY), job) == 2 * (1_000_000 + 8192 * (2 * 100 + 3 * 200))
    assert judge_bytes(Judge(TINY), replace(job, arithmetic_bytes=4)) == 2 * judge_bytes(Judge(TINY), job)
    long = replace(job, lengths=Lengths(200, 1000, 20_000))  # a reply is scored whole
    assert judge_bytes(Judge(TINY), long) == 2 * (1_000_000 + 20_200 * 800)


@pytest.mark.parametrize(("place", "added"), [("own", 0), ("cpu", 0), ("beside", 2 * 2_000_000)])
def test_reward_models_beside_a_rank_take_of_its_memory(place: JudgePlace, added: int) -> None:
    job = TrainingJob(64, Lengths(200, 1000, 4000), judges=(Judge(TINY), Judge(TINY)), judge_place=place)
    without = training_memory(TINY, replace(job, judges=()), 4)
    memory = training_memory(TINY, job, 4)
    assert memory.kept_bytes - without.kept_bytes == memory.total_bytes - without.total_bytes == added


@pytest.mark.parametrize(("devices", "on_one"), [(3, 1), (2, 2), (1, 3)])
def test_reward_models_share_the_devices_that_are_theirs(devices: int, on_one: int) -> None:
    lengths = Lengths(200, 1000, 4000)
    judges = (Judge(TINY), Judge(llama()), Judge(llama()))
    job = TrainingJob(64, lengths, judges=judges)
    layout = Layout(DEVICES["H100"], 0, 8, judge_devices=devices)
    step = step_on(Workload(TINY, None, job, 1), layout, Assumptions())
    sizes = sorted((judge_bytes(judge, job) for judge in judges), reverse=True)
    assert step.judge_bytes == sum(sizes[:on_one])
    small = replace(layout, device=replace(DEVICES["H100"], memory_bytes=1.2 * sizes[0]))
    assert bool(step_on(Workload(TINY, None, job, 1), small, Assumptions()).problems) == (on_one > 1)


def test_a_sampler_holds_weights_and_as_many_sequences_as_fit() -> None:
    # 1e9 bytes, less 2e6 of weights; a token keeps 10 x 50 values, 1,000 bytes; a sequence 100 + 1,000 tokens
    job = RolloutJob(1000, 10, Lengths(100, 1000, 20_000))
    memory = rollout_memory(TINY, job, ROUND, 1, 1, usable_memory=1.0)
    assert memory is not None
    assert memory.weights_bytes == 2e6
    assert memory.sequences == pytest.approx(998e6 / 1_100_000)
    assert memory.total_bytes == pytest.approx(1e9)
    few = rollout_memory(TINY, replace(job, prompts=10), ROUND, 1, 1, usable_memory=1.0)
    assert few is not None
    assert few.sequences == 100
    assert few.cache_bytes == pytest.approx(100 * 1_100_000)
    # neither a model nor a single longest completion that is larger than the device
    assert rollout_memory(TINY, job, replace(ROUND, memory_bytes=1e6), 1, 1, usable_memory=1.0) is None
    assert rollout_memory(TINY, replace(job, lengths=Lengths(100, 1000, 1e6)), ROUND, 1, 1, usable_memory=1.0) is None


# --- time ----------------------------------------------------------------------------------------------------------


def test_decoding_by_hand() -> None:
    job = RolloutJob(2, 4, Lengths(100, 1000, 2000))
    memory = rollout_memory(TINY, job, ROUND, 1, 1, 1.0)
    assert memory is not None
    a = replace(EXACT, engine_step_s=0.001)
    time = rollout_time(TINY, job, ROUND, 1, 1, memory, a)
    assert time.decode_steps == 2000  # the longest of eight that all run at once
    # weights 2,000 times; 8 completions attend to 100 x 1,000 + 2 x 1,000^2 / 2 positions, of 1,000 bytes each
    read_s = (2000 * 2e6 + 8 * 1_100_000 * 1000) / 1e10
    assert time.decode_s == pytest.approx(read_s + 2000 * 0.001)
    # two prompts of 100 tokens: 2 a weight, and 2 x 10 layers x 100 a squared length
    assert time.prefill_s == pytest.approx(2 * (2 * 900_000 * 100 + 2 * 10 * 100 * 100**2) / 1e12)
    steady = rollout_time(TINY, job, ROUND, 1, 1, memory, a, steady=True)
    assert steady.decode_steps == 1000


def test_decoding_of_a_large_batch_is_bound_by_arithmetic() -> None:
    slow = replace(ROUND, bf16_flops_per_s=1e9)
    job = RolloutJob(100, 1, Lengths(0, 10, 10))
    memory = rollout_memory(TINY, job, slow, 1, 1, 1.0)
    assert memory is not None
    attended = 100 * 10**2 / 2
    operations = 2 * 900_000 * 1000 + 4 * 10 * 100 * attended
    assert rollout_time(TINY, job, slow, 1, 1, memory, EXACT).decode_s == pytest.approx(operations / 1e9)


def test_an_update_by_hand() -> None:
    job = TrainingJob(8, Lengths(0, 1000, 1000), sharding="model_parallel")
    # 6 a weight and token, and 3 x 2 x layers x width of the queries a squared length
    operations = 6 * 900_000 * 8000 + 6 * 10 * 100 * 8 * 1000**2
    one = update_time(TINY, job, ROUND, 1, EXACT)
    assert one.compute_s == pytest.approx(operations / 1e12)
    assert one.optimizer_s == pytest.approx(28 * 1_000_000 / 1e10)
    assert one.score_s == one.reduce_s == 0
    assert update_time(TINY, job, ROUND, 4, EXACT).compute_s == pytest.approx(operations / 4e12)
    assert update_time(TINY, replace(job, checkpointing=True), ROUND, 1, EXACT).compute_s == pytest.approx(
        operations / 1e12 * 4 / 3
    )
    assert update_time(TINY, replace(job, arithmetic_bytes=4), ROUND, 1, EXACT).compute_s == pytest.approx(
        operations / 1e11
    )
    scored = replace(job, references=(TINY,), own_scores=1, judges=(Judge(TINY, 0.5),))
    assert update_time(TINY, scored, ROUND, 1, EXACT).score_s == pytest.approx(2.5 * operations / 3 / 1e12)
    # how long a CPU takes is not known
    assert update_time(TINY, replace(scored, judge_place="cpu"), ROUND, 1, EXACT).score_s == pytest.approx(
        2 * operations / 3 / 1e12
    )
    lora = replace(job, lora=LoraSettings())
    assert update_time(TINY, lora, ROUND, 1, EXACT).compute_s == pytest.approx(operations * 2 / 3 / 1e12)


def test_what_ranks_exchange_by_hand() -> None:
    # 16,000 tokens on 2 ranks are one micro-batch each of 8,000, gathered twice in bf16: half comes from the other
    job = TrainingJob(16, Lengths(0, 1000, 1000), tokens_per_micro_batch=8000)
    slow_link = replace(ROUND, node_link_bytes_per_s=1e6)
    time = update_time(TINY, job, slow_link, 2, EXACT)
    assert time.compute_s == pytest.approx(2 * 2 * 1e6 / 2 / 1e6)
    assert time.reduce_s == pytest.approx(4 * 1e6 / 2 / 1e6)
    ddp = update_time(TINY, replace(job, sharding="ddp"), slow_link, 2, EXACT)
    assert ddp.reduce_s == 2 * time.reduce_s
    # across nodes a rank has its share of the node's eight links of 1e8 bytes a second
    far = update_time(TINY, replace(job, sequences=80), replace(ROUND, network_bytes_per_s=1e5), 16, EXACT)
    assert far.reduce_s == pytest.approx(4 * 1e6 * 15 / 16 / 8e5)


def test_handing_over_weights() -> None:
    assert handover_s(TINY, Layout(ROUND, 1, 1, shared=True), 2, EXACT) == 0
    assert handover_s(TINY, Layout(ROUND, 4, 4), 2, EXACT) == 2e6 / 1e9
    assert handover_s(TINY, Layout(ROUND, 8, 8), 2, EXACT) == 2e6 / 1e8
    assert handover_s(TINY, Layout(ROUND, 8, 8, weight_links=8), 2, EXACT) == 2e6 / 8e8


def work(prompts: int = 64, mean: float = 1000, longest: float = 8000, prompt: float = 100) -> Workload:
    lengths = Lengths(prompt, mean, longest)
    return Workload(llama(), RolloutJob(prompts, 16, lengths), TrainingJob(prompts * 16, lengths), 1)


def test_schedules_overlap() -> None:
    layout = Layout(DEVICES["H100"], 8, 8)
    steps = {s: step_on(work(), layout, Assumptions(), s) for s in ("synchronous", "one_step_behind", "asynchronous")}
    wait, behind, free = steps["synchronous"], steps["one_step_behind"], steps["asynchronous"]
    assert wait.rollout is not None and wait.update is not None
    assert wait.step_s == pytest.approx(wait.rollout.total_s + wait.update.total_s + wait.handover_s)
    assert behind.step_s == pytest.approx(max(wait.rollout.total_s, wait.update.total_s) + wait.handover_s)
    assert free.step_s <= behind.step_s < wait.step_s


def test_devices_that_take_turns_need_the_memory_of_both_unless_it_is_swapped_out() -> None:
    assert step_on(work(), Layout(DEVICES["H100"], 8, 8, 1, True, True), Assumptions()).problems == ()
    alone = Layout(DEVICES["H100"], 1, 1, 1, True)
    assert any("training needs" in problem for problem in step_on(work(), alone, Assumptions()).problems)


@given(st.integers(1, 63), st.integers(1, 4096), st.floats(1, 20_000), st.floats(1, 5))
def test_more_samplers_are_never_slower(replicas: int, prompts: int, mean: float, over: float) -> None:
    def seconds(count: int) -> float:
        job = RolloutJob(prompts, 8, Lengths(100, mean, mean * over))
        memory = rollout_memory(llama(), job, DEVICES["H100"], count, 1, 0.9)
        assert memory is not None
        return rollout_time(llama(), job, DEVICES["H100"], count, 1, memory, Assumptions()).total_s

    assert seconds(replicas + 1) <= seconds(replicas) * (1 + 1e-9)


@given(st.integers(1, 255), st.integers(1, 10_000), st.floats(1, 30_000), st.booleans())
def test_more_ranks_are_never_slower_where_nothing_is_exchanged(
    ranks: int, sequences: int, mean: float, checkpointing: bool
) -> None:
    job = TrainingJob(sequences, Lengths(100, mean, mean), checkpointing=checkpointing, sharding="model_parallel")
    fewer, more = (update_time(llama(), job, DEVICES["H100"], n, Assumptions()) for n in (ranks, ranks + 1))
    assert more.total_s < fewer.total_s
    assert training_memory(llama(), job, ranks + 1).kept_bytes < training_memory(llama(), job, ranks).kept_bytes


@given(st.floats(1, 10_000), st.floats(1, 3), st.floats(1, 4), st.integers(1, 512))
def test_longer_sequences_are_never_cheaper(mean: float, growth: float, over: float, prompts: int) -> None:
    layout = Layout(DEVICES["H100"], 8, 8)
    short = step_on(work(prompts, mean, mean * over * growth), layout, Assumptions())
    long = step_on(work(prompts, mean * growth, mean * over * growth), layout, Assumptions())
    longer_tail = step_on(work(prompts, mean, mean * over * growth * 1.5), layout, Assumptions())
    assert short.step_s <= long.step_s * (1 + 1e-9)
    assert short.step_s <= longer_tail.step_s * (1 + 1e-9)


# --- what a person writes --------------------------------------------------------------------------------------------


def test_clusters() -> None:
    cluster = parse_cluster("64xH800")
    assert (cluster.device.name, cluster.devices, cluster.nodes, cluster.rollout) == ("H800", 64, 8, None)
    assert parse_cluster("8xh100:rollout=3,train=5").rollout == 3
    assert parse_cluster(" 12xA100-80:shared ").shared
    assert parse_cluster("12xA100-80").nodes == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("H800", "must look like 64xH800"),
        ("0xH800", "must look like"),
        ("8xH101", "did you mean H100"),
        ("8xH100:rollout=4", "after the colon comes"),
        ("8xH100:rollout=4,train=5", "add up to 8"),
        ("8xH100:rollout=0,train=8", "at least 1 each"),
    ],
)
def test_a_cluster_that_cannot_be_read(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_cluster(text)


def test_factors() -> None:
    a = parse_assumptions(["mfu=0.35", "mean_tokens=8000"])
    assert (a.mfu, a.mean_tokens, a.links) == (0.35, 8000, Assumptions().links)
    assert a.completion_tokens(32_768) == 8000
    assert a.completion_tokens(4096) == 4096
    assert Assumptions().completion_tokens(32_768) == 8192
    # ln 8192 + 0.5772 means, never above the cap, never below the mean
    assert Assumptions().longest_tokens(1000, 8192, 32_768) == pytest.approx(9588, rel=1e-3)
    assert Assumptions().longest_tokens(8000, 8192, 32_768) == 32_768
    assert parse_assumptions(["long_tail=3"]).longest_tokens(1000, 8192, 32_768) == 3000
    assert Assumptions().longest_tokens(1000, 1, 32_768) == 1000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mfv=0.3", "did you mean mfu"),
        ("mfu=1.2", "at most 1"),
        ("mfu=0", "above 0"),
        ("rows=-1", "at least 0"),
        ("rows=x", "number"),
    ],
)
def test_a_factor_that_cannot_be(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_assumptions([text])


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_devices_say_where_their_numbers_stand(device: Device) -> None:
    assert device.source
    # slips of a unit would leave these bounds
    assert 1e14 < device.bf16_flops_per_s < 3e15
    assert 1e13 < device.fp32_flops_per_s < device.bf16_flops_per_s
    assert 24e9 <= device.memory_bytes <= 192e9 and 8e11 < device.memory_bytes_per_s < 9e12
    assert device.network_bytes_per_s <= device.node_link_bytes_per_s < device.memory_bytes_per_s
