"""The page Chat on `ponder ui` as a process of its own, with real models: embedded, and checkpoints of a run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from page_helpers import PATIENCE_MS
from playwright.sync_api import Browser, Locator, Page, expect

from ponder.model.embedded import FOLDERS
from ponder.recipe import load_recipe
from ponder.run import RunFolder, StageRecord

TASKS = {"tasks": {"countdown": {}}}
STAGES = {
    "zero": {"verb": "reinforce", "model": "mini", "template": "mini", **TASKS},
    "dev": {"verb": "fine_tune", "model": "mini", "data": ["mini-world"], "steps": 1, "template": "mini"},
    "r1": {"verb": "reinforce", "model": "dev", "template": "mini", **TASKS},
}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `ponder ui` on a run whose checkpoints are copies of the embedded model."""
    runs = tmp_path_factory.mktemp("runs")
    run = RunFolder(runs / "tiny")
    with run.lock():
        run.prepare(load_recipe({"name": "tiny", "stages": STAGES}))
        for name, stage in STAGES.items():
            run.set_record(name, StageRecord(verb=str(stage["verb"]), state="done"))
    for name in STAGES:
        shutil.copytree(FOLDERS["mini"], run.stage_folder(name) / "model")
    command = [sys.executable, "-m", "ponder", "ui", "--runs", str(runs), "--no-open", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            announced = re.search(r"http://\S+", process.stderr.readline())
            assert announced is not None
            yield announced.group()
            process.terminate()
            assert process.wait(120) == 0
        finally:
            process.kill()


@pytest.fixture(params=[(1280, 800), (390, 844)], ids=["desktop", "phone"])
def page(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Page]:
    width, height = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.goto(f"{address}/#/chat")
    yield page
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()
    assert troubles == []


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def sample_at(page: Page, temperature: float) -> None:
    button(page, "Settings").click()
    page.get_by_label("Temperature").fill(str(temperature))
    button(page, "Done").click()


COUNTDOWN = "Use 3, 5, 7 once each with + - * to make 22. Answer with an expression."


def test_a_conversation_with_real_models(page: Page) -> None:
    expect(page.get_by_label("Model 1")).to_have_value("tiny/r1")
    sample_at(page, 0)
    ask(page, COUNTDOWN)
    expect(page.locator("details.thinking summary")).to_have_text(re.compile(r"Thought for \d"))
    expect(button(page, "Regenerate")).to_be_visible(timeout=30_000)

    button(page, "DeepThink").click()
    page.get_by_label("Model 1").select_option("mini")
    ask(page, COUNTDOWN)
    second = page.locator("article.reply").nth(1)
    expect(second.locator(".answer")).to_have_text(re.compile("[0-9]"))
    expect(second.get_by_text("tokens")).not_to_contain_text("thinking")
    expect(second.locator("details.thinking")).to_be_hidden()
    first_answer = second.locator(".answer").inner_text()

    button(page, "Regenerate").click()
    expect(second.get_by_text("2/2")).to_be_visible(timeout=30_000)
    expect(second.locator(".answer")).to_have_text(first_answer)  # greedy

    button(page, "DeepThink").click()
    page.locator(".user").nth(1).hover()
    button(page, "Edit").nth(1).click()
    page.get_by_label("Edit the message").fill("Who are you?")
    page.keyboard.press("Enter")
    expect(page.locator(".answer").nth(1)).to_contain_text("Ponder")


def test_a_long_reply_is_stopped_and_another_survives_a_reload(page: Page) -> None:
    sample_at(page, 2)  # at which the model rambles until it has no room
    page.get_by_label("Model 1").select_option("mini")
    for leave in (lambda: page.keyboard.press("Escape"), page.reload):
        for _ in range(5):  # it may end by itself at once
            button(page, "New chat").first.click()
            ask(page, "Tell me all that you know.")
            expect(page.locator("article.reply")).to_contain_text(re.compile(r"\w{3}"))
            leave()
            remark = page.locator("p.remark", has_text=re.compile(r"^(Stopped|The page was left)"))
            expect(button(page, "Regenerate")).to_be_visible()  # either way it has ended
            if remark.is_visible():
                break
        expect(remark).to_be_visible()
        expect(page.locator("article.reply")).to_contain_text(re.compile(r"\w{3}"))


def test_base_zero_and_r1_side_by_side(page: Page) -> None:
    button(page, "tiny: from base to R1").click()
    button(page, "DeepThink").click()
    ask(page, "Who are you?")
    expect(page.locator("article.reply")).to_have_count(3)
    expect(button(page, "Regenerate")).to_have_count(3)
    names = [f"Reply of {name}" for name in ("mini", "tiny/zero", "tiny/r1")]
    assert [reply.get_attribute("aria-label") for reply in page.locator("article.reply").all()] == names
