"""Runs, Rollouts and Tables in a real Chromium, on a run that a recipe made and on one made to harm the reader."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest
from fastapi import FastAPI
from made_runs import HOSTILE, aged_run, earlier_run, known_run, real_run, rollout, write_metrics
from page_helpers import PATIENCE_MS
from playwright.sync_api import Browser, Page, expect

from ponder.run import RunFolder
from ponder.serving.app import create_app
from ponder.serving.models import ModelSource, ServedModels
from ponder.serving.settings import ServeSettings
from ponder.store.rollouts import RolloutWriter
from ponder.ui.app import mount_ui

DESKTOP, PHONE = (1280, 800), (390, 844)
SIZES = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny` is real, `known` is made up, `hostile` holds what a model might write to harm a reader."""
    folder = tmp_path_factory.mktemp("runs")
    real_run(folder / "tiny")
    known_run(folder / "known")
    hostile = known_run(folder / "hostile")
    with closing(RolloutWriter(hostile.rollouts_path, "zero")) as writer:
        text = f"{HOSTILE}1+2=4. wait 1+2=3{HOSTILE}"
        evil = rollout(
            9,
            1,
            problem=HOSTILE[:80],
            text=text,
            thinking="",
            answer=HOSTILE,
            prompt=HOSTILE,
            token_ids=[],
            logprobs=[],
        )
        spelled = rollout(10, 0, text=HOSTILE, thinking="", answer=None)
        writer.add(9, [evil])
        writer.add(10, [spelled])
    aged_run(folder / "ages")
    earlier_run(folder / "old")
    samples = hostile.path / "stages" / "table" / "samples" / "zero.jsonl"
    samples.write_text(samples.read_text().replace("<b>zero</b>", HOSTILE.replace('"', "'")))
    return folder


@pytest.fixture(scope="module")
def address(runs: Path, serve_app: Callable[[FastAPI], AbstractContextManager[str]]) -> Iterator[str]:
    app = create_app(ServedModels({"mini-llama": ModelSource("mini-llama")}), ServeSettings())
    mount_ui(app, runs)
    with serve_app(app) as address:
        yield address


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Open]:
    """Opens the page at a hash; at the end, nothing may have gone wrong in it and nothing may stick out of it."""
    contexts, troubles, allowed = [], [], []

    def opening(hash_: str, size: tuple[int, int] = DESKTOP, scheme: str = "light", expected: str = "") -> Page:
        allowed.append(expected)
        viewport = {"width": size[0], "height": size[1]}
        context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: troubles.append(dialog.message))
        page.goto(f"{address}{hash_}")
        return page

    yield opening
    for context in contexts:
        for page in context.pages:
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        context.close()
    assert [trouble for trouble in troubles if not any(text and text in trouble for text in allowed)] == []


# --- runs ----------------------------------------------------------------------------------------------------------


@SIZES
def test_runs_are_listed_and_one_opens_with_its_curves(open_page: Open, size: tuple[int, int]) -> None:
    page = open_page("#/runs", size)
    page.get_by_role("link", name=re.compile("tiny")).click()
    expect(page.get_by_role("heading", name="tiny")).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("^zero"))).to_have_attribute("aria-pressed", "true")
    for title in ("Held-out accuracy", "Response length", "Reward and its parts", "Entropy", "Dead groups", "Speed"):
        figure = page.locator("figure", has=page.get_by_role("heading", name=title, exact=True))
        expect(figure).to_be_visible()
        expect(figure.locator(".legend b").first).not_to_have_text("–")
    expect(page.locator("figure canvas").nth(9)).to_be_attached()
    page.get_by_text("Who starts from whom").click()
    expect(page.locator("svg .name", has_text="table")).to_be_visible()


def test_several_runs_are_drawn_over_each_other_and_the_address_keeps_them(open_page: Open) -> None:
    page = open_page("#/runs/known?stage=known/zero")
    page.get_by_label("Draw another stage or run over it").select_option("tiny/zero")
    legend = page.locator("figure", has=page.get_by_role("heading", name="Accuracy in training")).locator(".legend")
    expect(legend).to_contain_text("known 40%")
    expect(legend).to_contain_text("tiny")
    page.reload()
    expect(legend).to_contain_text("tiny")
    page.get_by_role("button", name="Leave out tiny/zero").click()
    expect(legend).not_to_contain_text("tiny")


def test_a_run_that_goes_on_is_redrawn_and_alerts_are_named(open_page: Open, runs: Path) -> None:
    known_run(runs / "going", state="interrupted")
    page = open_page("#/runs/going")
    figure = page.locator("figure", has=page.get_by_role("heading", name="Accuracy in training"))
    expect(figure.locator(".legend b")).to_have_text("40%")
    expect(page.locator(".stage.interrupted")).to_contain_text("4 of 6 steps")
    page.get_by_text("The watchdog noticed something").click()
    expect(page.get_by_text("rewards differ in no group, step 2")).to_be_visible()
    write_metrics(RunFolder(runs / "going"), range(5, 6))
    expect(figure.locator(".legend b")).to_have_text("50%")
    expect(page.locator(".stage.interrupted")).to_contain_text("5 of 6 steps")
    page.get_by_text("How to go on").click()
    expect(page.locator(".commands code")).to_contain_text("ponder run")


def test_pointing_at_a_curve_shows_the_values_there(open_page: Open) -> None:
    page = open_page("#/runs/known")
    figure = page.locator("figure", has=page.get_by_role("heading", name="Accuracy in training"))
    figure.locator(".u-over").hover(position={"x": 3, "y": 40})
    expect(figure.locator(".legend")).to_contain_text("step 1")
    expect(figure.locator(".legend b")).to_have_text("10%")


def test_the_switch_of_colours_is_remembered(open_page: Open) -> None:
    page = open_page("#/runs/known", scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.get_by_label("Colours: As the system").click()
    assert page.evaluate(colour) != dark
    page.reload()
    expect(page.get_by_label("Colours: Light")).to_be_visible()
    assert page.evaluate(colour) != dark


# --- rollouts ------------------------------------------------------------------------------------------------------


@SIZES
def test_rollouts_are_filtered_read_and_judged_again(open_page: Open, size: tuple[int, int]) -> None:
    page = open_page("#/rollouts/known", size, expected="400")  # a verifier that cannot read the reference
    expect(page.get_by_text("17 rollouts")).to_be_visible()
    if size == PHONE:
        page.get_by_text("Filter and search").click()
    page.locator("select[name=verdict]").select_option("wrong")
    expect(page.get_by_text("8 rollouts")).to_be_visible()
    page.get_by_label("Search in the text").fill("100%_s")
    expect(page.get_by_text("4 rollouts")).to_be_visible()
    expect(page.get_by_label("Search in the text")).to_be_focused()
    page.locator("a.item").first.click()
    expect(page.get_by_role("heading", name="zero, step 4")).to_be_visible()
    expect(page.locator(".outcome")).to_contain_text("1+2 is 3")
    page.reload()
    expect(page.locator(".outcome")).to_contain_text("The rule of arithmetic")
    page.get_by_label("Verifier").select_option("math")
    expect(page.locator(".outcome")).to_contain_text("reference")
    expect(page.locator(".group .sample")).to_have_count(4)
    page.get_by_text("This problem through the whole run").click()
    expect(page.locator(".groups tbody tr")).to_have_count(4)
    page.locator(".groups .sample.cut").first.click()
    expect(page.get_by_text("its length limit")).to_be_visible()
    page.go_back()
    expect(page.locator(".groups")).to_be_visible()


COLOURS = [
    ("probability", "probability k4", "certain"),  # p = exp(-0.5) = 0.61, of 9 shades 0.39
    ("surprise", "surprise k1", "5 nats or more"),
    ("entropy", "entropy k5", "2 nats or more"),
    ("advantage", "more k5", "here 1."),
    ("ratio", "more k9", "½ or less"),
]


@SIZES
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tokens_are_coloured_and_a_legend_says_by_what(open_page: Open, size: tuple[int, int], scheme: str) -> None:
    page = open_page("#/rollouts/known/2", size, scheme)
    expect(page.locator("mark.turning")).to_have_text("Wait")
    for kind, tint, legend in COLOURS:
        page.get_by_label("Colour by").select_option(kind)
        expect(page.locator(".completion .t").first).to_have_class(f"t {tint}")
        assert page.locator(".completion").inner_text() == "<think>1+2=4. Wait, 1+2=3</think><answer>3</answer>"
        expect(page.locator(".scale")).to_contain_text(legend)
        shade = "getComputedStyle(document.querySelector('.completion .t')).backgroundColor"
        assert page.evaluate(shade) != "rgba(0, 0, 0, 0)"
    assert page.locator(".colour option:disabled").all_inner_texts() == ["Policy version (see below)"]
    expect(page.get_by_text("Policy version: one version, 0, sampled all of it.")).to_be_visible()


def test_the_colour_that_was_chosen_stays_for_the_next_rollout_that_has_it(open_page: Open) -> None:
    page = open_page("#/rollouts/known/2", expected="400")  # no rule reads the made-up reference
    page.get_by_label("Colour by").select_option("ratio")
    page.locator(".group .sample").nth(2).click()
    expect(page.locator(".completion .t.less.k4").first).to_be_visible()  # log2(0.75) = -0.42
    page.locator("a.item", has_text="held out").click()
    expect(page.get_by_label("Colour by")).to_have_value("plain")
    expect(page.get_by_text("Ratio: this rollout was not trained on.")).to_be_visible()


@SIZES
def test_tokens_are_read_by_keyboard_and_by_touch(open_page: Open, size: tuple[int, int]) -> None:
    page = open_page("#/rollouts/known/2", size)
    page.get_by_label("Colour by").focus()
    page.keyboard.press("End")  # the last colouring that this rollout has
    expect(page.get_by_label("Colour by")).to_have_value("ratio")
    readout = page.locator(".readout")
    expect(readout).to_contain_text("arrow keys")
    page.get_by_label("Completion").focus()
    page.keyboard.press("ArrowRight")
    expect(readout).to_have_text('"<think>"p 0.607−log p 0.5 natsentropy 1 natsratio 2')
    page.keyboard.press("End")
    expect(readout.locator("code")).to_have_text('"</answer>"')
    page.keyboard.press("ArrowRight")
    page.locator(".completion .t", has_text="4").first.click()
    expect(readout.locator("code")).to_have_text('"4"')
    expect(page.locator(".completion .chosen")).to_have_count(1)


@SIZES
def test_a_rollout_over_several_versions_of_the_policy(open_page: Open, size: tuple[int, int]) -> None:
    page = open_page("#/rollouts/ages", size)
    stale = page.locator("a.item", has_text="3 updates old")
    expect(stale).to_have_count(1)
    stale.click()
    expect(page.get_by_text("2 to 4, 3 updates before the one that learnt from it")).to_be_visible()
    page.get_by_label("Colour by").select_option("version")
    expect(page.locator(".scale .step")).to_have_text(["2", "3", "4"])
    tints = [token.get_attribute("class") for token in page.locator(".completion .t").all()]
    assert tints[:9] == ["t version k2"] * 3 + ["t version k6"] * 5 + ["t version k9"]
    assert set(tints[9:]) == {"t version k9"}


def test_the_list_is_filtered_by_version_where_rollouts_are_older_than_their_steps(open_page: Open) -> None:
    page = open_page("#/rollouts/ages")
    page.get_by_label("Policy version from").fill("3")
    expect(page.locator("a.item")).to_have_count(5)  # four of step 4, and what was held out then
    expect(page).to_have_url(re.compile("version_from=3"))
    page = open_page("#/rollouts/known")
    expect(page.locator("a.item")).to_have_count(17)
    expect(page.get_by_label("Policy version from")).to_have_count(0)


def test_a_hostile_token_is_only_text(open_page: Open) -> None:
    page = open_page("#/rollouts/hostile/19")
    page.get_by_label("Colour by").select_option("entropy")
    expect(page.locator(".completion")).to_contain_text("<script>document.title")
    page.get_by_label("Completion").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(page.locator(".readout code")).to_have_text(re.compile('^".'))
    assert page.evaluate("document.querySelectorAll('main script, main img, main [onerror]').length") == 0
    assert page.title() == "Rollouts · Ponder"


def test_a_run_of_an_earlier_version_says_what_it_has_not_stored(open_page: Open) -> None:
    page = open_page("#/rollouts/old/2")
    disabled = page.locator(".colour option:disabled")
    expect(disabled).to_have_text([f"{title} (see below)" for title in ("Entropy", "Ratio", "Policy version")])
    expect(page.locator(".reasons")).to_contain_text("Entropy: not stored by the version of Ponder, or the engine")
    page.get_by_label("Colour by").select_option("probability")
    expect(page.locator(".completion .t.probability").first).to_be_visible()


@SIZES
def test_what_asynchronous_training_logs_has_curves(open_page: Open, size: tuple[int, int]) -> None:
    page = open_page("#/runs/ages", size)
    for title, value in (("Log-probability gap", "0.25"), ("Staleness", "1.5"), ("Waiting", "3")):
        figure = page.locator("figure", has=page.get_by_role("heading", name=title, exact=True))
        expect(figure.locator(".legend b")).to_have_text(value)
    page = open_page("#/runs/known", size)
    expect(page.locator("figure").first).to_be_visible()
    expect(page.get_by_role("heading", name="Waiting")).to_have_count(0)


@SIZES
def test_a_real_rollout_has_its_tokens(open_page: Open, size: tuple[int, int]) -> None:
    page = open_page("#/rollouts/tiny?split=train", size)
    page.locator("a.item").first.click()
    page.get_by_label("Colour by").select_option("surprise")
    expect(page.locator(".completion .t").first).to_be_visible()


def test_the_moments_it_turns_round_are_one_click_away(open_page: Open) -> None:
    page = open_page("#/rollouts/known")
    page.get_by_role("button", name="Show me the moments it turns round").click()
    expect(page.locator("a.item")).to_have_count(4)
    expect(page.locator("a.item mark.turning").first).to_have_text("Wait")


@SIZES
def test_a_hostile_rollout_is_only_text(open_page: Open, size: tuple[int, int]) -> None:
    for hash_ in ("#/rollouts/hostile?text=stolen", "#/rollouts/hostile/18", "#/rollouts/hostile?turns=correction"):
        page = open_page(hash_, size)
        shown = page.locator(".completion" if "/18" in hash_ else "a.item .preview").first
        expect(shown).to_contain_text("<script>document.title")
        assert page.evaluate("document.querySelectorAll('main script, main img, main [onerror]').length") == 0
        assert page.title() == "Rollouts · Ponder"
    page = open_page("#/tables/hostile/table?model=zero&benchmark=sums", size)
    expect(page.get_by_text("<script>document.title").first).to_be_visible()
    assert page.title() == "Tables · Ponder"


def test_a_run_without_rollouts_says_so(open_page: Open, runs: Path) -> None:
    known_run(runs / "empty").rollouts_path.unlink()
    page = open_page("#/rollouts/empty", expected="404")
    expect(page.get_by_text("has stored no rollouts yet")).to_be_visible()


# --- tables --------------------------------------------------------------------------------------------------------


@SIZES
def test_a_cell_opens_its_samples_and_models_are_compared(open_page: Open, size: tuple[int, int]) -> None:
    page = open_page("#/tables/known/table", size)
    expect(page.get_by_role("heading", name="pass@1 (%)")).to_be_visible()
    expect(page.locator(".differences")).to_contain_text("+50.0")
    expect(page.locator(".differences")).to_contain_text("no difference to be seen")
    page.get_by_role("link", name=re.compile("75.0")).click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("article")).to_have_count(4)
    dialog.get_by_label("Verdict").select_option("wrong")
    expect(dialog.locator("article")).to_have_count(1)
    page.reload()
    expect(dialog.locator("article")).to_have_count(4)
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()
    page.get_by_text("Published, not measured here").click()
    expect(page.get_by_text("From R1-Zero to R1, stage by stage")).to_be_visible()


def test_a_table_is_copied_as_markdown_and_csv(open_page: Open) -> None:
    page = open_page("#/tables/known/table")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy Markdown").click()
    expect(page.get_by_text("Copied as Markdown")).to_be_visible()
    assert "| zero" in page.evaluate("navigator.clipboard.readText()")
    page.get_by_role("button", name="Copy CSV").click()
    expect(page.get_by_text("Copied as CSV")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()").startswith("model,benchmark,measure,value,low,high\n")
    page.locator("select").first.select_option("tiny / table")
    expect(page.get_by_role("heading", name="pass@1 (%)")).to_be_visible()
    expect(page).to_have_url(re.compile("#/tables/tiny/table"))
