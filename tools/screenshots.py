"""Take the pictures of docs/ from a real run: `python tools/screenshots.py runs/r1-mini`.

Starts `ponder ui` on the folder in which the run lies and looks at it with Chromium. Needs playwright and a Chromium.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
DESKTOP, PHONE = (1280, 860), (390, 780)
TALL = (1280, 1020)
"""Shows a long search to its answer."""

MAX_BYTES = 200_000
"""A picture may not be larger: pages of docs must load fast."""

WAIT_MS = 120_000
STOP_S = 60.0


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--table", default="table", help="the stage whose results are shown")
    parser.add_argument("--to", type=Path, default=PICTURES, help="where the pictures go")
    parser.add_argument("--seed", type=int, default=0, help="of the replies in the chat")
    options = parser.parse_args()
    run = options.run.resolve()
    options.to.mkdir(parents=True, exist_ok=True)
    with serving(run.parent) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        camera = Camera(browser, f"{address}/#", options.to)
        take_runs(camera, run.name)
        take_rollouts(camera, run.name)
        take_tables(camera, run.name, options.table)
        take_chat(camera, options.seed)
        browser.close()


class Camera:
    """Opens pages and takes pictures of them."""

    def __init__(self, browser: Browser, address: str, folder: Path) -> None:
        self._browser = browser
        self._address = address
        self._folder = folder

    @contextmanager
    def page(self, hash_: str, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> Iterator[Page]:
        """A page in a browser of its own."""
        context = self._browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if scheme == "dark" else "light",
            reduced_motion="reduce",
        )
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.goto(f"{self._address}{hash_}")
        page.wait_for_load_state("networkidle")
        yield page
        context.close()

    def take(self, page: Page, name: str) -> None:
        """Save what is seen of a page. Raises `SystemExit` when the picture is too large for docs."""
        page.evaluate("document.activeElement.blur()")
        path = self._folder / f"{name}.png"
        page.screenshot(path=path)
        if path.stat().st_size > MAX_BYTES:
            raise SystemExit(f"{path} has {path.stat().st_size} bytes, but {MAX_BYTES} is the limit")
        print(f"{path}  {path.stat().st_size // 1000} kB")


def take_runs(camera: Camera, run: str) -> None:
    """The run's page, and its curves in the dark."""
    with camera.page(f"/runs/{run}") as page:
        page.locator("figure canvas").first.wait_for()
        camera.take(page, "run")
    with camera.page(f"/runs/{run}", scheme="dark") as page:
        figure = page.locator("figure", has=page.locator("canvas")).first
        figure.scroll_into_view_if_needed()
        page.evaluate("(top) => scrollTo(0, top)", figure.evaluate("box => box.offsetTop - 80"))
        camera.take(page, "curves-dark")


def take_rollouts(camera: Camera, run: str) -> None:
    """A rollout that turns round."""
    with camera.page(f"/rollouts/{run}?turns=correction&verdict=right&language=en&stage=zero&split=train") as page:
        page.locator(".browse .list a").nth(1).click()
        page.locator(".detail mark.turning").first.wait_for()
        page.get_by_text("Judging …").wait_for(state="hidden")
        page.evaluate("scrollTo(0, 0)")
        camera.take(page, "rollout")
        page.get_by_label("Colour by").select_option(label="Entropy")
        page.evaluate("scrollTo(0, 0)")
        camera.take(page, "rollout-entropy")


def take_tables(camera: Camera, run: str, stage: str) -> None:
    """The run's results."""
    with camera.page(f"/tables/{run}/{stage}") as page:
        page.locator("main table").first.wait_for()
        camera.take(page, "tables")


def take_chat(camera: Camera, seed: int) -> None:
    """The chat: its beginning, one reply, base beside Zero and R1, and on a phone."""
    with camera.page("/chat") as page:
        page.locator(".starter").first.wait_for()
        camera.take(page, "chat-start")
    with camera.page("/chat", TALL) as page:
        set_seed(page, seed)
        talk(page, "Make a number", replies=1)
        camera.take(page, "chat")
    with camera.page("/chat", TALL) as page:
        set_seed(page, seed)
        page.locator(".lineups button").first.click()
        talk(page, "Make a number", replies=3)
        page.locator(".scroller").evaluate("box => box.scrollTop = 0")
        camera.take(page, "chat-compare")
    with camera.page("/chat", PHONE, "dark") as page:
        set_seed(page, seed)
        talk(page, "Put in parentheses", replies=1)
        camera.take(page, "chat-phone")


def set_seed(page: Page, seed: int) -> None:
    """Choose the seed of the replies to come."""
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("Seed").fill(str(seed))
    page.get_by_role("button", name="Done", exact=True).click()


def talk(page: Page, starter: str, replies: int) -> None:
    """Ask a starter, wait for the replies and unfold their thinking."""
    page.get_by_role("button", name=starter).click()
    page.get_by_role("button", name="Regenerate", exact=True).nth(replies - 1).wait_for()
    for summary in page.locator("details.thinking summary").all():
        summary.click()


@contextmanager
def serving(runs: Path) -> Iterator[str]:
    """`ponder ui` on a folder of runs, as long as it is looked at; yields its address."""
    command = [sys.executable, "-m", "ponder", "ui", "--runs", str(runs), "--no-open", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        said = process.stderr.readline() if process.stderr is not None else ""
        address = re.search(r"http://\S+", said)
        try:
            if address is None:
                raise SystemExit(f"ponder ui did not start: {said}")
            yield address.group()
        finally:
            process.terminate()
            process.wait(STOP_S)


def chromium() -> str:
    """The browser's program. Raises `SystemExit` where there is none."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        raise SystemExit("there is no Chromium: install Debian's package `chromium`")
    return path


if __name__ == "__main__":
    main()
