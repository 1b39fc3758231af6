"""The page's pictures for the docs, renewed by one command: every room of the page on real runs, and a walk as a GIF.

python benchmarks/screenshots.py RUN [OTHER]     (needs playwright, and chromium on this machine)
"""

from __future__ import annotations

import argparse
import io
import math
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOMS = {
    "try": "try",
    "inside": "inside?ref=test:8&layer=features.3&channel=4",
    "mistakes": "mistakes",
    "playground": "playground?ref=test:8",
    "training": "training",
    "compare": "compare?ref=test:8",
}
SIZES = {"wide": (1440, 900), "phone": (390, 844)}
KEPT = {  # in the docs
    "page-try": "page-try-wide-dark-en",
    "page-inside": "page-inside-wide-light-en",
    "page-inside-zh": "page-inside-wide-light-zh",
    "page-mistakes": "page-mistakes-wide-light-en",
}
LANGUAGES = {"en": "en-US", "zh": "zh-CN"}
BOWS = [(50, 33, 17, range(-150, 80, 10)), (50, 67, 19, range(-80, 160, 10))]  # of a 3: centre, radius, degrees
WALK = ["features.0", "features.1", "features.2", "features.3", "features.5", "classifier.1", "classifier.5", "softmax"]


@contextmanager
def opened(*runs: Path) -> Iterator[str]:
    """`convlens open`, and the address that it prints."""
    command = [sys.executable, "-m", "convlens", "open", *map(str, runs), "--no-browser"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        said = []
        for line in process.stderr:
            said.append(line)
            if re.match(r"http://127\.0\.0\.1:\d+/\?ticket=", line):
                break
        else:
            sys.exit(f"convlens open gave no address: {''.join(said).strip()}")
        address = said[-1].strip()
        try:
            yield address
        finally:
            process.send_signal(signal.SIGINT)


def rooms(browser: Browser, address: str, state: dict, out: Path, whole: bool) -> None:
    """Each room at both sizes, light and dark, in both languages."""
    for size, (width, height) in SIZES.items():
        for theme in ("light", "dark"):
            for language, locale in LANGUAGES.items():
                context = browser.new_context(
                    viewport={"width": width, "height": height},
                    color_scheme=theme,
                    locale=locale,
                    reduced_motion="reduce",
                    storage_state=state,
                )
                page = context.new_page()
                for room, view in ROOMS.items():
                    show(page, address, view)
                    if room == "try":
                        draw(page)
                    page.screenshot(path=out / f"page-{room}-{size}-{theme}-{language}.png", full_page=whole)
                context.close()


def walk(browser: Browser, address: str, state: dict, path: Path) -> None:
    """From the picture to the probabilities, a layer after the other, as a GIF."""
    context = browser.new_context(
        viewport={"width": 1440, "height": 1180}, locale="en-US", reduced_motion="reduce", storage_state=state
    )
    page = context.new_page()
    frames = []
    for layer in WALK:
        show(page, address, f"inside?ref=test:8&layer={layer}")
        page.evaluate("scrollTo(0, document.querySelector('.landscape').offsetTop - 70)")
        frames.append(
            Image.open(io.BytesIO(page.screenshot())).convert("RGB").resize((960, 787), Image.Resampling.LANCZOS)
        )
    context.close()
    colours = np.concatenate([np.asarray(frame) for frame in frames])  # one palette: nothing flickers
    palette = Image.fromarray(colours).quantize(256)
    first, *rest = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    first.save(path, save_all=True, append_images=rest, duration=1800, loop=0, optimize=True)


def draw(page: Page) -> None:
    """A 3, where the page takes drawings."""
    box = page.locator("canvas.pad").bounding_box() if page.locator("canvas.pad").count() else None
    if not box:
        return
    side = box["width"] / 100
    for x, y, radius, turns in BOWS:
        for i, turn in enumerate(turns):
            across, down = (radius * f(math.radians(turn)) for f in (math.cos, math.sin))
            page.mouse.move(box["x"] + side * (x + across), box["y"] + side * (y + down))
            if not i:
                page.mouse.down()
        page.mouse.up()
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)  # the nearest training images come last


def show(page: Page, address: str, view: str) -> None:
    page.goto(f"{address.partition('?')[0]}#/{view}", wait_until="networkidle")
    page.wait_for_timeout(700)  # pictures that came late are decoded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("other", type=Path, nargs="?")
    parser.add_argument("--docs", type=Path, default=Path("docs/images"), help="those that the docs show (docs/images)")
    parser.add_argument("--out", type=Path, help="all of them, as PNG")
    parser.add_argument("--whole", action="store_true", help="whole pages, not only what a window shows")
    given = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with (
        tempfile.TemporaryDirectory() as scratch,
        opened(*filter(None, (given.run, given.other))) as address,
        sync_playwright() as playwright,
    ):
        out = given.out or Path(scratch)
        out.mkdir(parents=True, exist_ok=True)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        entry = browser.new_context()
        entry.new_page().goto(address)
        state = entry.storage_state()  # the cookie that the ticket became
        warm = browser.new_context(storage_state=state).new_page()
        for view in ROOMS.values():  # a server's first answers take seconds
            show(warm, address, view)
        rooms(browser, address, state, out, given.whole)
        walk(browser, address, state, given.docs / "page-walk.gif")
        for name, picture in KEPT.items():
            small = Image.open(out / f"{picture}.png").convert("RGB").resize((1000, 625), Image.Resampling.LANCZOS)
            small.save(given.docs / f"{name}.webp", quality=85, method=6)
        browser.close()


if __name__ == "__main__":
    main()
