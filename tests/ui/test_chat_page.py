"""The page Chat in a real Chromium: what people do with it, and what hostile replies try to do to it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import Response
from page_helpers import PATIENCE_MS, Serve
from playwright.sync_api import Browser, Locator, Page, expect
from scripted_api import END, ScriptedApi, Step, event, refusal, reply, says, thinks

DESKTOP, PHONE = (1280, 800), (390, 844)
SIZES = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])

OpenChat = Callable[..., "Chat"]


class Chat:
    """The page, by what a person sees of it."""

    def __init__(self, page: Page, troubles: list[str]) -> None:
        self.page = page
        self.troubles = troubles
        self.input = page.get_by_label("Message", exact=True)
        self.replies = page.locator("article.reply")
        self.answer = page.locator(".answer")
        self.thoughts = page.locator("details.thinking")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def ask(self, text: str) -> None:
        self.input.fill(text)
        self.input.press("Enter")

    def stored(self) -> list[dict[str, Any]]:
        """The conversations in the browser's storage."""
        entries = self.page.evaluate("Object.entries(localStorage)")
        return [json.loads(value) for key, value in entries if key.startswith("ponder.chat.")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, serve_app: Serve) -> Iterator[tuple[ScriptedApi, str]]:
    api = ScriptedApi(tmp_path_factory.mktemp("runs"))
    with serve_app(api.app) as address:
        yield api, address


@pytest.fixture
def api(server: tuple[ScriptedApi, str]) -> ScriptedApi:
    """The server's models, which say hello."""
    found, _ = server
    found.replies = {None: reply("Hello!")}
    found.requests.clear()
    found.left.clear()
    return found


@pytest.fixture
def open_chat(api: ScriptedApi, server: tuple[ScriptedApi, str], browser: Browser) -> Iterator[OpenChat]:
    """Opens the page in a browser of its own; no dialog may appear and no script may fail."""
    opened = []

    def opening(size: tuple[int, int] = DESKTOP, storage: dict[str, str] | None = None, init: str = "") -> Chat:
        width, height = size
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce")
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        troubles: list[str] = []
        page.on("dialog", lambda dialog: (troubles.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("pageerror", lambda error: troubles.append(f"error {error}"))
        page.on("request", lambda request: foreign(request.url) and troubles.append(f"asked for {request.url}"))
        for key, value in (storage or {}).items():
            page.add_init_script(f"localStorage.setItem({json.dumps(key)}, {json.dumps(value)})")
        page.add_init_script(init)
        page.goto(f"{server[1]}#/chat")
        expect(page.get_by_role("heading", name="What shall we think about?")).to_be_visible()
        opened.append((context, troubles))
        return Chat(page, troubles)

    yield opening
    for context, troubles in opened:
        context.close()
        assert troubles == []


def foreign(url: str) -> bool:
    return re.match(r"http://127\.0\.0\.1:|blob:http://127\.0\.0\.1:|data:", url) is None


# --- a reply as it comes ---------------------------------------------------------------------------------------------


@SIZES
def test_thinking_streams_in_a_block_that_folds_when_the_answer_comes(
    size: tuple[int, int], api: ScriptedApi, open_chat: OpenChat
) -> None:
    answers, ends = threading.Event(), threading.Event()
    api.replies[None] = [thinks("3+5=8 "), thinks("no.\nwait"), answers, says("So $3*5"), says("+7$."), ends, END]
    chat = open_chat(size)
    chat.ask("Make 22")

    expect(chat.thoughts.locator(".thoughts")).to_have_text("3+5=8 no.\nwait", use_inner_text=True)
    expect(chat.thoughts.locator("summary")).to_contain_text(re.compile(r"Thinking… \d+\.\d s"))
    assert chat.thoughts.get_attribute("open") is not None

    answers.set()
    expect(chat.thoughts.locator("summary")).to_have_text(re.compile(r"Thought for \d+\.\d s"))
    expect(chat.thoughts.locator(".thoughts")).to_be_hidden()
    expect(chat.answer.locator(".katex")).to_be_visible()
    expect(chat.button("Stop")).to_be_visible()

    ends.set()
    expect(chat.button("Regenerate")).to_be_visible()
    expect(chat.page.get_by_role("status").first).to_contain_text("Reply: So")
    chat.thoughts.locator("summary").click()
    expect(chat.thoughts.locator(".thoughts")).to_be_visible()
    assert no_sideways_scroll(chat.page)


def no_sideways_scroll(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def test_a_restart_voids_the_answer_so_far(api: ScriptedApi, open_chat: OpenChat) -> None:
    api.replies[None] = [says("before the tag "), event(restart=True, content=""), says("42"), END]
    chat = open_chat()
    chat.ask("What?")
    expect(chat.answer).to_have_text("42")


def test_stars_between_numbers_multiply_and_a_bare_box_is_drawn(api: ScriptedApi, open_chat: OpenChat) -> None:
    api.replies[None] = reply(r"3*5*7 and a*b*c but *soft* and **loud**, so \boxed{3*5+7}. It costs $5 or $6.")
    chat = open_chat()
    chat.ask("What?")
    expect(chat.answer.locator(".katex")).to_have_count(1)
    expect(chat.answer).to_contain_text("3*5*7 and a*b*c but soft and loud, so ")
    expect(chat.answer).to_contain_text("It costs $5 or $6.")
    assert chat.answer.locator("em").all_inner_texts() == ["soft"]


def test_code_has_a_button_that_copies_it(api: ScriptedApi, open_chat: OpenChat) -> None:
    api.replies[None] = reply("Here:\n\n```python\nprint('<b>')\n```\n")
    chat = open_chat()
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.ask("Code, please")
    chat.button("Copy").last.click()
    expect(chat.page.get_by_text("Code copied")).to_be_visible()
    assert chat.page.evaluate("navigator.clipboard.readText()") == "print('<b>')"


def test_the_view_stays_where_the_reader_is(api: ScriptedApi, open_chat: OpenChat) -> None:
    more, ends = threading.Event(), threading.Event()
    api.replies[None] = [says("line\n\n" * 80), more, says("more\n\n" * 40), ends, END]
    chat = open_chat()
    chat.ask("Count")
    scroller = chat.page.locator(".scroller")
    expect(chat.answer.locator("p")).to_have_count(80)
    at_end = "box => Math.round(box.scrollHeight - box.scrollTop - box.clientHeight) <= 1"
    chat.page.wait_for_function(at_end, arg=scroller.element_handle())  # it follows

    scroller.evaluate("box => box.scrollTop = 100")
    expect(chat.button("To the end")).to_be_visible()
    more.set()
    expect(chat.answer.locator("p")).to_have_count(120)
    assert scroller.evaluate("box => box.scrollTop") == 100  # and it does not

    ends.set()
    expect(chat.button("Regenerate")).to_be_attached()
    chat.button("To the end").click()
    chat.page.wait_for_function(at_end, arg=scroller.element_handle())


# --- what the server is asked ----------------------------------------------------------------------------------------


def test_earlier_thinking_and_turns_without_an_answer_are_not_sent_back(api: ScriptedApi, open_chat: OpenChat) -> None:
    chat = open_chat()
    api.replies[None] = reply("Four.", thinking="2+2")
    chat.ask("2+2?")
    expect(chat.button("Regenerate")).to_be_visible()
    api.replies[None] = [thinks("hm"), event("length"), "data: [DONE]\n\n"]
    chat.ask("And 3+3?")
    expect(chat.page.get_by_text("Cut off")).to_be_visible()
    chat.ask("And 4+4?")
    expect(chat.replies).to_have_count(3)
    expect(chat.button("Regenerate")).to_be_visible()
    assert api.requests[-1]["messages"] == [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "And 4+4?"},
    ]


def test_deepthink_off_and_the_settings_reach_the_server(api: ScriptedApi, open_chat: OpenChat) -> None:
    chat = open_chat()
    chat.button("Settings").click()
    chat.page.get_by_label("Temperature").fill("0.5")
    chat.page.get_by_label("Thinking budget").fill("64")
    chat.page.get_by_label("Seed").fill("7")
    chat.page.get_by_label("System message").fill("Be brief.")
    chat.page.get_by_label("Top-p").fill("3")  # no top-p, so it is left out
    chat.page.keyboard.press("Escape")
    chat.ask("On")
    expect(chat.button("Regenerate")).to_be_visible()
    chat.button("DeepThink · 64").click()
    chat.ask("Off")
    expect(chat.replies).to_have_count(2)
    expect(chat.button("Regenerate")).to_be_visible()

    on, off = api.requests
    assert (on["temperature"], on["seed"], on["stream"]) == (0.5, 7, True)
    assert "top_p" not in on and "max_tokens" not in on
    assert on["messages"][0] == {"role": "system", "content": "Be brief."}
    assert on["thinking"] == {"type": "enabled", "budget_tokens": 64}
    assert off["chat_template_kwargs"]["thinking"] is False
    assert off["thinking"] == {"type": "disabled"}
    assert len(chat.stored()) == 1


def test_a_starter_is_one_click_away(api: ScriptedApi, open_chat: OpenChat) -> None:
    chat = open_chat(PHONE)
    chat.page.get_by_role("button", name="Make a number").click()
    expect(chat.answer).to_have_text("Hello!")
    assert re.match(r"Use \d+, \d+, \d+ once each", api.requests[0]["messages"][0]["content"])


# --- what people do --------------------------------------------------------------------------------------------------


@SIZES
def test_stop_keeps_what_has_come_and_frees_the_server(
    size: tuple[int, int], api: ScriptedApi, open_chat: OpenChat
) -> None:
    api.replies[None] = [says("One, two"), threading.Event()]
    chat = open_chat(size)
    chat.ask("Count")
    expect(chat.answer).to_have_text("One, two")
    if size == PHONE:
        chat.button("Stop").click()
    else:
        chat.page.keyboard.press("Escape")
    expect(chat.page.get_by_text("Stopped.")).to_be_visible()
    expect(chat.answer).to_have_text("One, two")
    assert api.left.wait(120)


def test_regenerate_keeps_both_replies(api: ScriptedApi, open_chat: OpenChat) -> None:
    chat = open_chat()
    api.replies[None] = reply("first")
    chat.ask("Say")
    expect(chat.answer).to_have_text("first")
    api.replies[None] = reply("second")
    chat.button("Regenerate").click()
    expect(chat.answer).to_have_text("second")
    chat.button("The reply before").focus()
    chat.page.keyboard.press("Enter")
    expect(chat.answer).to_have_text("first")
    expect(chat.page.get_by_text("1/2")).to_be_visible()
    expect(chat.button("The next reply")).to_be_enabled()
    chat.ask("Go on")
    expect(chat.replies).to_have_count(2)
    assert api.requests[-1]["messages"][1]["content"] == "first"


def test_an_edited_message_is_asked_anew_and_what_followed_goes(api: ScriptedApi, open_chat: OpenChat) -> None:
    chat = open_chat()
    for text in ("One", "Two"):
        chat.ask(text)
        expect(chat.button("Regenerate")).to_be_visible()
    chat.page.locator(".user").first.hover()
    chat.button("Edit").first.click()
    area = chat.page.get_by_label("Edit the message")
    area.press("Escape")
    expect(chat.page.get_by_text("Two")).to_be_visible()
    chat.button("Edit").first.click()
    area.fill("Three")
    area.press("Enter")
    expect(chat.replies).to_have_count(1)
    expect(chat.answer).to_have_text("Hello!")
    assert api.requests[-1]["messages"] == [{"role": "user", "content": "Three"}]


def test_shift_and_enter_begins_a_line_and_enter_while_composing_sends_nothing(
    api: ScriptedApi, open_chat: OpenChat
) -> None:
    chat = open_chat()
    expect(chat.input).to_be_focused()
    chat.page.keyboard.type("a")
    chat.page.keyboard.press("Shift+Enter")
    chat.page.keyboard.type("b")
    chat.input.dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    assert api.requests == []
    chat.page.keyboard.press("Enter")
    expect(chat.answer).to_have_text("Hello!")
    assert api.requests[0]["messages"][0]["content"] == "a\nb"


@SIZES
def test_a_reload_in_the_middle_keeps_what_had_come(
    size: tuple[int, int], api: ScriptedApi, open_chat: OpenChat
) -> None:
    api.replies[None] = [thinks("hm"), says("Half a"), threading.Event()]
    chat = open_chat(size)
    chat.ask("Tell me")
    expect(chat.answer).to_have_text("Half a")
    chat.page.reload()
    expect(chat.answer).to_have_text("Half a")
    expect(chat.page.get_by_text("The page was left")).to_be_visible()
    api.replies[None] = reply("A whole reply")
    chat.button("Retry").click()
    expect(chat.answer).to_have_text("A whole reply")


def test_a_reply_goes_on_while_another_page_is_looked_at(api: ScriptedApi, open_chat: OpenChat) -> None:
    ends = threading.Event()
    api.replies[None] = [says("Slow"), ends, says(" but sure"), END]
    chat = open_chat()
    chat.ask("Hurry")
    expect(chat.answer).to_have_text("Slow")
    chat.page.get_by_role("link", name="Tables").click()
    expect(chat.input).to_have_count(0)
    ends.set()
    chat.page.go_back()
    expect(chat.answer).to_have_text("Slow but sure")
    expect(chat.button("Regenerate")).to_be_visible()


@SIZES
def test_three_models_answer_side_by_side_each_with_its_own_stop(
    size: tuple[int, int], api: ScriptedApi, open_chat: OpenChat
) -> None:
    api.replies = {
        "mini": reply("from mini"),
        "tiny/zero": [thinks("hm"), threading.Event()],
        "tiny/r1": [says("from r1"), threading.Event()],
    }
    chat = open_chat(size)
    for _ in range(2):
        chat.page.get_by_title("Another model beside it").click()
    chat.ask("Who is best?")
    expect(chat.replies).to_have_count(3)
    expect(chat.replies.nth(0)).to_contain_text("from mini")
    chat.button("Stop tiny/zero").click()
    expect(chat.replies.nth(1)).to_contain_text("Stopped thinking after")
    expect(chat.replies.nth(2)).to_contain_text("from r1")
    expect(chat.button("Stop tiny/r1")).to_be_visible()
    chat.button("Stop").click()
    expect(chat.button("Regenerate")).to_have_count(3)
    assert no_sideways_scroll(chat.page)
    assert sorted(body["model"] for body in api.requests) == ["mini", "tiny/r1", "tiny/zero"]


def test_each_model_is_told_its_own_replies(api: ScriptedApi, open_chat: OpenChat) -> None:
    api.replies = {"mini": reply("mini's"), "tiny/zero": reply("zero's")}
    chat = open_chat()
    chat.page.get_by_title("Another model beside it").click()
    for text in ("One", "Two"):
        chat.ask(text)
        expect(chat.button("Regenerate")).to_have_count(2)
    told = {body["model"]: body["messages"][1]["content"] for body in api.requests if len(body["messages"]) == 3}
    assert told == {"mini": "mini's", "tiny/zero": "zero's"}


def test_an_endpoint_is_added_and_asked_through_the_server(
    api: ScriptedApi, server: tuple[ScriptedApi, str], open_chat: OpenChat
) -> None:
    chat = open_chat(PHONE)
    chat.page.get_by_label("Model 1").select_option("Add an endpoint…")
    chat.page.get_by_label("Model", exact=True).fill("other-model")
    chat.page.get_by_label("API key").fill("secret")
    chat.page.get_by_label("Base URL").fill("ftp://127.0.0.1/v1")
    chat.button("Add").click()
    expect(chat.page.get_by_role("alert")).to_contain_text("the base URL must look like")
    chat.page.get_by_label("Base URL").fill(f"{server[1]}v1")
    chat.button("Add").click()
    expect(chat.page.get_by_role("dialog")).to_have_count(0)
    chat.ask("Hi")
    expect(chat.answer).to_have_text("Hello!")
    assert api.requests[-1]["model"] == "other-model"
    assert "secret" not in json.dumps(chat.page.evaluate("Object.entries(localStorage)"))


# --- conversations ---------------------------------------------------------------------------------------------------


@SIZES
def test_conversations_are_renamed_exported_and_deleted(
    size: tuple[int, int], api: ScriptedApi, open_chat: OpenChat
) -> None:
    api.replies[None] = reply("Four.", thinking="2+2\nis 4")
    chat = open_chat(size)
    chat.ask("2+2?")
    expect(chat.button("Regenerate")).to_be_visible()

    def choose(action: str, title: str) -> None:
        if size == PHONE and chat.page.locator(".side.open").count() == 0:
            chat.button("Conversations").click()
        chat.button(f"More of {title}").click()
        chat.button(action).click()

    choose("Rename", "2+2?")
    chat.page.get_by_label("Name of the conversation").fill("Sums")
    chat.page.keyboard.press("Enter")
    with chat.page.expect_download() as downloading:
        choose("Export Markdown", "Sums")
    assert downloading.value.suggested_filename == "sums.md"
    text = downloading.value.path().read_text()
    assert text == "# Sums\n\n## You\n\n2+2?\n\n## mini\n\n> 2+2\n> is 4\n\nFour.\n"
    with chat.page.expect_download() as downloading:
        choose("Export JSON", "Sums")
    exported = downloading.value.path().read_text()
    assert json.loads(exported) == chat.stored()[0]
    choose("Delete", "Sums")
    assert len(chat.stored()) == 1  # it asks first
    chat.button("Really delete?").click()
    assert chat.stored() == []
    expect(chat.page.get_by_role("heading", name="What shall we think about?")).to_be_visible()

    def take_in(text: str) -> None:
        file = {"name": "sums.json", "mimeType": "application/json", "buffer": text.encode()}
        chat.page.get_by_label("A conversation as JSON").set_input_files(files=[file])

    take_in(exported)
    expect(chat.answer).to_have_text("Four.")
    take_in(exported)  # it lies beside the first
    chat.page.wait_for_function(
        "Object.keys(localStorage).filter((key) => key.startsWith('ponder.chat.')).length === 2"
    )
    take_in('{"id": 5}')
    expect(chat.page.get_by_text("sums.json is no conversation")).to_be_visible()


BROKEN = {
    "ponder.chat.a": "{",
    "ponder.chat.b": '{"id": "b", "turns": [{"user": 1}]}',
    "ponder.chat.c": json.dumps({"id": "c", "title": {"x": 1}, "turns": [{"user": "Old", "columns": [
        {"model": "gone", "shown": 9, "attempts": [{"answer": "kept", "state": "running"}, None]}]}]}),
    "ponder.chatsettings": '{"thinks": "yes", "models": 3, "temperature": "hot"}',
}  # fmt: skip


def test_a_storage_full_of_nonsense_is_read_as_far_as_it_goes(open_chat: OpenChat) -> None:
    chat = open_chat(storage=BROKEN)
    chat.button("Conversation").click()
    expect(chat.answer).to_have_text("kept")
    expect(chat.page.get_by_text("The page was left")).to_be_visible()
    chat.button("New chat").first.click()
    chat.ask("Still there?")
    expect(chat.answer).to_have_text("Hello!")


@pytest.mark.parametrize("method", ["setItem", "getItem"])
def test_a_full_or_forbidden_storage_does_not_stop_the_chat(method: str, open_chat: OpenChat) -> None:
    chat = open_chat(
        init=f"""
        const real = Storage.prototype.{method};
        Storage.prototype.{method} = function (key, ...rest) {{
            if (key.startsWith("ponder.chat")) throw new DOMException("no", "QuotaExceededError");
            return real.call(this, key, ...rest);
        }};
    """
    )
    chat.ask("Hi")
    expect(chat.answer).to_have_text("Hello!")
    if method == "setItem":
        expect(chat.page.get_by_text("no room for more conversations")).to_be_visible()


# --- troubles --------------------------------------------------------------------------------------------------------

TROUBLES: dict[str, tuple[Response | list[Step], str]] = {
    "busy": (refusal(429, "all places are taken"), "All places are taken."),
    "stopping": (refusal(503, "the server is stopping"), "The server is stopping."),
    "proxy": (Response("<h1>Bad gateway</h1>", 502, media_type="text/html"), "The server says 502."),
    "failed": ([says("Half"), 'data: {"error": {"message": "the model failed"}}\n\n'], "The model failed."),
    "cut": ([says("Half")], "The connection was lost in the middle of the reply."),
    "nonsense": (["data: {\n\n"], "The server sent something that is no reply."),
}  # fmt: skip


def test_a_trouble_is_one_sentence_with_retry(api: ScriptedApi, open_chat: OpenChat) -> None:
    chat = open_chat()
    for script, sentence in TROUBLES.values():
        api.replies[None] = script
        chat.button("New chat").first.click()
        chat.ask("Hi")
        expect(chat.page.get_by_role("alert")).to_have_text(sentence)
        api.replies[None] = reply("Now it works")
        chat.button("Retry").click()
        expect(chat.answer).to_have_text("Now it works")


# --- hostile replies -------------------------------------------------------------------------------------------------

HARM = "window.harmed = true"
HOSTILE = {
    "script": f"<script>{HARM}</script><img src=x onerror='{HARM}'><svg onload='{HARM}'> done",
    "half a tag": f"done <img src=x onerror={HARM} <div <<a href=javascript:{HARM}",
    "links": f"[a](javascript:{HARM}) [b](data:text/html,<script>{HARM}</script>) ![i](http://192.0.2.1/x.png) "
    "<http://192.0.2.1> [good](https://example.org) done",
    "close in code": "`</think>` and\n\n```\n</think><answer>\n```\n\ndone",
    "maths": rf"$\href{{javascript:{HARM}}}{{x}}$ $\htmlClass{{x}}{{y}}$ $\includegraphics{{http://192.0.2.1/x}}$ done",
    "bomb": r"$\def\a#1{#1#1}\a\a\a\a\a\a\a\a\a\a\a\a\a\a\a\a\a\a\a\a{x}$ done",
    "endless maths": "done $$" + r"\frac{1}{" * 30_000,
    "many formulas": "done " + "$x^2$ " * 9_000,
    "boxes": "done " + r"\boxed{" * 20_000,
    "huge line": "done " + "x" * 350_000,
    "huge word list": "done " + "*a_b* [c](d) `e` " * 18_000,
    "quotes": ">" * 30_000 + " done",
    "lists": "done\n\n" + "\n".join(" " * (2 * n) + "- x" for n in range(400)),
    "fence without end": "done\n\n```html\n" + "<script>\n" * 20_000,
    "right to left": "done \u202e\u2066gnorw\u0000 \ufffd \ud83d",
}


@SIZES
def test_a_hostile_reply_harms_nothing(size: tuple[int, int], api: ScriptedApi, open_chat: OpenChat) -> None:
    chat = open_chat(size)
    for name, text in HOSTILE.items():
        pieces = [text[start : start + 5_000] for start in range(0, len(text), 5_000)]
        api.replies[None] = [thinks(text[:20_000]), *map(says, pieces), END]
        chat.button("New chat").first.click()
        chat.ask(f"Do your worst: {name}")
        expect(chat.button("Regenerate")).to_be_visible()
        expect(chat.answer).to_contain_text("done")
        chat.page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")  # it still draws
        assert chat.page.evaluate("window.harmed") is None, name
        assert chat.page.locator(".answer :is(script, img, svg, iframe, form, input, style)").count() == 0, name
        for link in chat.page.locator(".answer a").all():
            assert (link.get_attribute("href") or "http").startswith("http"), name
            assert "noopener" in (link.get_attribute("rel") or "noopener"), name
        assert no_sideways_scroll(chat.page), name


def test_a_reply_without_end_is_cut_off(api: ScriptedApi, open_chat: OpenChat) -> None:
    api.replies[None] = [*[says("word " * 2_000) for _ in range(60)], threading.Event()]
    chat = open_chat()
    chat.ask("Never stop")
    expect(chat.page.get_by_text("Cut off")).to_be_visible()
    assert api.left.wait(120)


# --- parts, by themselves --------------------------------------------------------------------------------------------

MIXED = (
    "Costs $5.\n\nSum $a_1+b$ and \\(c\\), then\n\n$$\\frac{1}{2}$$\n\n`$x` and ```y``` \\[z\\] \\boxed{1{2}3}\n\n"
    "```\n$$\n\n$\n```\n\n- one\n\n  two\n\nend"
)


def test_no_half_of_a_formula_is_ever_drawn(open_chat: OpenChat) -> None:
    page = open_chat().page
    shown = page.evaluate(
        """async (text) => {
            const { holdBack, lastBoundary } = await import("/static/pages/chat/render.js");
            return Array.from({ length: text.length + 1 }, (_, end) => {
                const begun = text.slice(0, end);
                const settled = lastBoundary(begun);
                return [begun, begun.slice(0, settled), holdBack(begun.slice(settled))];
            });
        }""",
        MIXED,
    )
    whole = re.compile(r"\$\$.+?\$\$|\\\(.+?\\\)|\\\[.+?\\\]|\\boxed\{1\{2\}3\}|\$a.+?\$")
    for begun, settled, tail in shown:
        assert begun.startswith(settled + tail)
        if "```\n" not in tail:
            assert re.search(r"\$\$|\\|\$a", whole.sub("", tail)) is None, tail
    boundaries = {settled for _, settled, _ in shown}
    assert not any(settled.count("```\n") % 2 for settled in boundaries), "a fence was cut in two"
    assert "".join(shown[-1][1:]) == MIXED


def test_events_are_the_same_wherever_the_stream_is_cut(open_chat: OpenChat) -> None:
    stream = ': still here\n\ndata: {"a": 1}\r\n\r\ndata:x\n\nevent: y\ndata: é\n\n'
    found = open_chat().page.evaluate(
        """async (stream) => {
            const { EventReader } = await import("/static/pages/chat/stream.js");
            return Array.from({ length: stream.length }, (_, cut) => {
                const reader = new EventReader();
                return [...reader.feed(stream.slice(0, cut)), ...reader.feed(stream.slice(cut))];
            });
        }""",
        stream,
    )
    assert all(events == ['{"a": 1}', "x", "é"] for events in found)
