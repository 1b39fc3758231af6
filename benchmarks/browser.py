"""A page of `convlens export RUN --to web` in headless Chromium: its size, how long it takes to start and to classify a
picture, and how far its pixels and answers are from Python's.

    python benchmarks/browser.py FOLDER PICTURE|FOLDER... [--limit N] [--chromium FILE]

Needs playwright and a Chromium. Pictures are taken evenly from those named. "classified" is from the choice of a file
to its answer on the page, "network" the network alone: one image a run, in the thread that the page uses.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright

from convlens import Predictor
from convlens.images import preprocess
from convlens.predict import pictures_in

STARTS = 5
ANSWERED = "() => document.querySelector('main').getAttribute('aria-busy') === 'false'"
SEEN = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
ALONE = """async () => {
  const ort = await import('./runtime/ort.js'), model = await (await fetch('model.json')).json();
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create('model.onnx', { executionProviders: ['wasm'] });
  const shape = [1, model.input.channels, ...model.input.size];
  const images = new ort.Tensor('uint8', new Uint8Array(shape.reduce((a, b) => a * b)), shape), taken = [];
  for (let i = 0; i < 60; i++) {
    const start = performance.now();
    await session.run({ images });
    taken.push(performance.now() - start);
  }
  return taken.slice(10);
}"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    given = parser.parse_args()
    found = list(pictures_in(given.pictures))
    paths = [found[i] for i in np.linspace(0, len(found) - 1, min(given.limit, len(found))).astype(int)]
    files = [path for path in given.folder.rglob("*") if path.is_file()]
    size, packed = (sum(measure(path) for path in files) / 1e6 for measure in (plain, gzipped))
    print(f"size: {size:.2f} MB in {len(files)} files, {packed:.2f} MB gzipped")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=given.folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
        starts = [start(browser.new_context().new_page(), url) for _ in range(STARTS)]
        print(f"start, nothing cached, to the golden batch checked: {statistics.median(starts):.2f} s")
        page = browser.new_page()
        start(page, url)
        alone = page.evaluate(ALONE)
        print(f"network: {statistics.median(alone):.2f} ms an image")
        compare(page, Predictor.load(given.folder), paths)
        browser.close()
    server.shutdown()


def plain(path: Path) -> int:
    return path.stat().st_size


def gzipped(path: Path) -> int:
    return len(gzip.compress(path.read_bytes(), 6))


def start(page: Page, url: str) -> float:
    """Seconds until the page says that it is checked."""
    begun = time.perf_counter()
    page.goto(url)
    page.wait_for_selector("#status.good")
    return time.perf_counter() - begun


def compare(page: Page, predictor: Predictor, paths: list[Path]) -> None:
    spec, taken, pixels, probabilities, different = predictor.manifest.input, [], [], [], []
    for path in paths:
        begun = time.perf_counter()
        page.set_input_files("#file", path)
        page.wait_for_function(ANSWERED)
        taken.append(1000 * (time.perf_counter() - begun))
        shown = np.array(page.locator("#seen").evaluate(SEEN), np.uint8).reshape(*spec.size, 4)[..., : spec.channels]
        ours = preprocess(path, spec)
        pixels.append(np.abs(shown.transpose(2, 0, 1).astype(int) - ours))
        row = next(predictor.answers(ours[None], 1))
        label = page.locator("#bars li").first
        probabilities.append(abs(float(label.locator("data").get_attribute("value") or 0) - (row.probability or 0)))
        if label.locator("span").first.inner_text() != row.label:
            different.append(f"{path} ({row.probability:.1%})")
    apart, same = np.concatenate([each.ravel() for each in pixels]), len(paths) - len(different)
    print(f"classified: {statistics.median(taken):.0f} ms a picture, {max(taken):.0f} at most")
    print(f"pixels: {apart.mean():.3f} of 255 apart on average, {apart.max()} at most, {(apart == 0).mean():.1%} equal")
    print(f"labels: {same} of {len(paths)} equal", *different, sep="\n  ")
    print(
        f"probabilities: {statistics.median(probabilities):.2g} apart in the middle, {max(probabilities):.2g} at most"
    )


if __name__ == "__main__":
    main()
