"""The page of `convlens open` in headless Chromium: how soon it is there, how soon a stroke is answered, and how smooth
a walk through the network is.

    python benchmarks/page.py RUN [--starts 5] [--layers 20] [--moves 20] [--chromium FILE]

RUN is of digits or other gray pictures, on which one draws, with its data in reach (CONVLENS_DATA). "first paint" is of
a browser that has nothing cached, to the first content. "stroke" is from a movement of the pen on the pad to the frame
after its probabilities stand in the page. The walk builds the room, scrolls through the layers where they are more than
the window shows, goes to the first of them, lets the pointer move over its map, and where there is a window lets it
slide. A long task is one that holds the page's thread for more than 50 ms, as the browser counts them.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from screenshots import opened

PAINTED = "() => performance.getEntriesByName('first-contentful-paint')[0].startTime"
STROKES = """() => {
  window.answers = [];
  let begun = 0;
  document.querySelector('canvas.pad').addEventListener('pointermove', () => { begun ||= performance.now(); }, true);
  new MutationObserver(() => requestAnimationFrame(() => {
    if (begun) window.answers.push(performance.now() - begun);
    begun = 0;
  })).observe(document.querySelector('.answer .bars'), { attributes: true, subtree: true, attributeFilter: ['style'] });
}"""
FRAMES = """() => {
  window.frames_ = [];
  window.long_ = [];
  let last = 0;
  const frame = (time) => { if (last) window.frames_.push(time - last); last = time; requestAnimationFrame(frame); };
  requestAnimationFrame(frame);
  new PerformanceObserver((found) => window.long_.push(...found.getEntries().map((each) => each.duration)))
    .observe({ type: 'longtask' });
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    given = parser.parse_args()
    with opened(given.run) as address, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
        entered = browser.new_context(viewport={"width": 1440, "height": 900})
        entered.new_page().goto(address)
        home = address.partition("?")[0]
        starts, size = [], 0
        for _ in range(given.starts):
            painted, size = start(browser, entered, home)
            starts.append(painted)
        print(f"first paint: {told(starts, 'ms')}; {size / 1e3:.0f} kB are loaded for it")
        page = entered.new_page()
        print(f"stroke: {told(strokes(page, home), 'ms')}")
        for name, (frames, tasks) in walk(page, home, given.layers, given.moves).items():
            late = sum(frame > 1.5 * 1000 / 60 for frame in frames) / len(frames)
            long = f"{len(tasks)} long tasks" + (f", the longest {max(tasks):.0f} ms" if tasks else "")
            print(f"{name}: {told([1000 / frame for frame in frames], 'frames/s')}; {late:.1%} late; {long}")
        browser.close()


def told(values: list[float], unit: str) -> str:
    found = sorted(values)
    low, high = found[len(found) // 20], found[math.ceil(0.95 * len(found)) - 1]
    return f"{statistics.median(found):.0f} {unit} (median of {len(found)}, {low:.0f} to {high:.0f} for 90 %)"


def start(browser: Browser, entered: BrowserContext, home: str) -> tuple[float, int]:
    """Milliseconds to the first paint, and the bytes that the first room loads, without the run's own."""
    context = browser.new_context(storage_state=entered.storage_state())
    page, sizes = context.new_page(), list[int]()
    page.on("response", lambda answer: sizes.append(0 if "/api/" in answer.url else len(answer.body())))
    page.goto(home, wait_until="networkidle")
    painted = page.evaluate(PAINTED)
    context.close()
    return painted, sum(sizes)


def strokes(page: Page, home: str) -> list[float]:
    """A pen that goes round, at most one movement for an answer."""
    page.goto(f"{home}#/try", wait_until="networkidle")
    page.locator("canvas.pad").wait_for()
    page.evaluate(STROKES)
    box = page.locator("canvas.pad").bounding_box()
    assert box
    spots = [(0.5 + 0.3 * math.cos(turn / 6), 0.5 + 0.35 * math.sin(turn / 6)) for turn in range(45)]
    page.mouse.move(box["x"] + box["width"] * spots[0][0], box["y"] + box["height"] * spots[0][1])
    page.mouse.down()
    for x, y in spots[1:]:
        page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y)
        page.wait_for_timeout(150)
    page.mouse.up()
    return page.evaluate("window.answers")[5:]


def walk(page: Page, home: str, layers: int, moves: int) -> dict[str, tuple[list[float], list[float]]]:
    """For each kind of step of the walk: milliseconds of its frames, and of its long tasks."""
    found: dict[str, tuple[list[float], list[float]]] = {}

    @contextmanager
    def measured(name: str) -> Iterator[None]:
        page.evaluate("window.frames_ = []; window.long_ = []")
        yield
        frames, tasks = page.evaluate("[window.frames_, window.long_]")
        kept = found.setdefault(name, ([], []))
        kept[0].extend(frames)
        kept[1].extend(tasks)

    page.evaluate(FRAMES)
    heads, scroller = page.locator(".layer .head"), page.locator(".scroller")
    with measured("the room is built"):
        page.goto(f"{home}#/inside?ref=test:3&all=1", wait_until="networkidle")
        heads.first.wait_for()
        page.wait_for_timeout(500)
    if scroller.evaluate("it => it.scrollWidth > it.clientWidth"):
        scroller.hover(position={"x": 300, "y": 200})
        with measured(f"{heads.count()} columns scroll"):
            for _ in range(4 * moves):
                page.mouse.wheel(120, 0)
                page.wait_for_timeout(16)
            page.wait_for_timeout(300)
    for place in range(min(layers, heads.count())):
        with measured("from layer to layer"):
            heads.nth(place).click()
            page.wait_for_load_state("networkidle")
            page.wait_for_timeout(300)
        stages = page.locator(".stage.live")
        if stages.count():
            stages.last.scroll_into_view_if_needed()
            box = stages.last.bounding_box()
            assert box
            with measured("the pointer over a map"):
                for move in range(moves):
                    across, down = (0.5 + 0.4 * turn(move * 0.7) for turn in (math.cos, math.sin))
                    page.mouse.move(box["x"] + box["width"] * across, box["y"] + box["height"] * down)
                    page.wait_for_timeout(30)
                page.wait_for_timeout(300)
        if page.locator(".play").count():
            with measured("the window slides"):
                page.locator(".play").click()
                page.wait_for_timeout(2000)
            page.locator(".play").click()
    return found


if __name__ == "__main__":
    main()
