"""The page in a real browser, from a real server, on real runs: what it shows is what torch computes."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from chromium import CHROMIUM
from convlens import Recipe, Run, load
from convlens.anatomy import Anatomy, dissect
from convlens.operating import probabilities_of
from runs import fit_undrawn
from strokes import DIGITS
from test_open import started

AXE = os.environ.get("CONVLENS_AXE")  # axe.min.js of axe-core, from npm into a folder outside of the repository
ROOMS = ["try", "inside", "mistakes", "playground", "training", "compare"]
RECIPE = Recipe(epochs=5).override({"model.name": "lenet5", "optim.name": "adam", "optim.lr": 2e-3, "batch_size": 32})
COLOURS = Recipe(epochs=6).override({"model.name": "vgg", "optim.lr": 0.05, "batch_size": 16, "data.size": [24, 24]})

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="no chromium; CONVLENS_CHROMIUM names one")]
sync_api = pytest.importorskip("playwright.sync_api")
sync_api.expect.set_options(timeout=30_000)  # a machine may be slow


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    recipe = RECIPE.override({"keep_epochs": 5})
    return fit_undrawn(recipe, load("mnist-5k", recipe), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def second(tmp_path_factory) -> Run:
    recipe = RECIPE.override({"epochs": 1, "seed": 1})
    return fit_undrawn(recipe, load("mnist-5k", recipe), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def context(run: Run, second: Run, browser: sync_api.Browser) -> Iterator[sync_api.BrowserContext]:
    """A browser that has opened the address."""
    with started("open", run.path, second.path, "--no-browser") as (_, address):
        context = browser.new_context(
            viewport={"width": 1440, "height": 900}, locale="en-US", base_url=address.partition("?")[0]
        )
        context.set_default_timeout(30_000)
        entry = context.new_page()
        entry.goto(address)
        entry.close()
        yield context
        context.close()


@pytest.fixture
def page(context: sync_api.BrowserContext) -> Iterator[sync_api.Page]:
    page = context.new_page()
    with watched(page):
        yield page
    page.close()


class watched:  # noqa: N801 - a context manager
    """No error on the console, no request to another host."""

    def __init__(self, page: sync_api.Page) -> None:
        self.page, self.wrong = page, list[str]()
        self.host = ""

    def __enter__(self) -> None:
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("response", lambda r: self.wrong.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", self._asked)

    def _asked(self, request: sync_api.Request) -> None:
        if not re.match(r"http://127\.0\.0\.1:\d+/|data:|blob:", request.url):
            self.wrong.append(request.url)

    def __exit__(self, kind: object, *_: object) -> None:
        assert kind or not self.wrong, self.wrong


def at(page: sync_api.Page, address: str) -> None:
    page.goto(f"/#/{address}", wait_until="networkidle")


def walked(run: Run, place: int, off: dict[str, list[int]] | None = None) -> Anatomy:
    return dissect(run.model_file().model, run.load_data().test.images[place], off)


def told(page: sync_api.Page) -> float:
    """The number under the pointer, as it is shown."""
    return float(page.locator(".total .result b").inner_text().replace("−", "-"))


def await_told(page: sync_api.Page, value: float) -> None:
    """Until the page shows that number; what is asked of the server while the pointer moves comes when it comes."""
    near = "value => Math.abs(Number(document.querySelector('.total')?.dataset.value) - value) <= 1e-4"
    page.wait_for_function(near, arg=value)
    assert told(page) == pytest.approx(value, abs=1.5e-4)


def draw(page: sync_api.Page, digit: int) -> None:
    page.get_by_role("button", name="Clear").click()
    page.evaluate("scrollTo(0, 0)")  # the whole pad in sight
    box = page.locator("canvas.pad").bounding_box()
    assert box
    for stroke in DIGITS[digit]:
        points = [(box["x"] + box["width"] * x / 100, box["y"] + box["height"] * y / 100) for x, y in stroke]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=4)
        page.mouse.up()


def test_ten_drawn_digits_are_read_while_they_are_drawn(page: sync_api.Page) -> None:
    at(page, "try")
    sync_api.expect(page.locator(".verdict")).to_contain_text("Waiting for your drawing")
    read = {}
    for digit in DIGITS:
        draw(page, digit)
        page.wait_for_timeout(400)  # the last answer may be on its way
        read[digit] = page.locator(".verdict strong").inner_text()
        shares = page.locator(".answer .bars .fill").evaluate_all(
            "bars => bars.map(bar => new DOMMatrix(getComputedStyle(bar).transform).a)"
        )
        assert sum(shares) == pytest.approx(1, abs=1e-3)
        seen = page.locator("img.seen").evaluate("image => [image.naturalWidth, image.naturalHeight]")
        assert seen == [28, 28]
    assert read[3] == "3"
    assert sum(said == str(digit) for digit, said in read.items()) >= 9, read
    page.get_by_role("button", name="Clear").click()
    sync_api.expect(page.locator(".verdict")).to_contain_text("Waiting")


def test_a_picture_is_dropped_and_chosen_and_walked_into(page: sync_api.Page, run: Run) -> None:
    at(page, "try")
    split = run.load_data().test
    sevens = int((split.labels == 7).nonzero()[0])
    page.set_input_files(
        "input[type=file]", files=[{"name": "7.png", "mimeType": "image/png", "buffer": png(split.images[sevens])}]
    )
    sync_api.expect(page.locator(".given .small[role=status]")).to_contain_text("28 × 28 PNG")
    sync_api.expect(page.locator(".near img")).to_have_count(8)
    page.get_by_label("Where it looked").check()
    sync_api.expect(page.locator("img.heat")).to_be_visible()
    page.evaluate(  # a drop, as the system sends it
        """async () => {
            const canvas = document.createElement("canvas");
            canvas.width = 50; canvas.height = 40;
            const context = canvas.getContext("2d");
            context.fillStyle = "white"; context.fillRect(0, 0, 50, 40);
            context.fillStyle = "black"; context.fillRect(24, 6, 4, 28);
            const blob = await new Promise((done) => canvas.toBlob(done));
            const transfer = new DataTransfer();
            transfer.items.add(new File([blob], "one.png", { type: "image/png" }));
            document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
        }"""
    )
    sync_api.expect(page.locator(".given .small[role=status]")).to_contain_text("50 × 40")
    sync_api.expect(page.locator(".verdict strong")).to_have_text("1")
    page.locator(".strip button").nth(4).click()
    sync_api.expect(page.locator(".doubt")).to_contain_text(re.compile("Right|Wrong"))
    page.get_by_role("link", name="See how it got there").click()
    sync_api.expect(page.get_by_role("heading", level=1)).to_have_text("Inside")
    sync_api.expect(page.locator(".named")).to_contain_text("Image test")


def png(image: torch.Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[0].byte().numpy()).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("layer", "channel"), [("features.0", 2), ("features.2", 1), ("features.3", 5), ("features.1", 0)]
)
def test_the_arithmetic_of_a_pixel_is_torchs(page: sync_api.Page, run: Run, layer: str, channel: int) -> None:
    page.emulate_media(reduced_motion="reduce")
    at(page, f"inside?ref=test:11&layer={layer}&channel={channel}")
    output = walked(run, 11).step(layer).output[channel]
    stage = page.locator(".stage").last
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    assert box
    for row, column in ((0, 0), (3, 4), (len(output) - 1, len(output) - 1)):
        side = len(output)
        page.mouse.move(box["x"] + box["width"] * (column + 0.5) / side, box["y"] + box["height"] * (row + 0.5) / side)
        await_told(page, output[row, column].item())
        terms = [float(text.replace("−", "-")) for text in page.locator(".total .term b").all_inner_texts()]
        if layer == "features.0":  # sum + bias = value, and the sum that of the products
            assert terms[-3] + terms[-2] == pytest.approx(terms[-1], abs=2e-4)
            cells = page.locator(".sums .grid").nth(2).locator("span").all_inner_texts()
            assert sum(float(cell.replace("−", "-")) for cell in cells) == pytest.approx(terms[-3], abs=0.005 * 25)


@pytest.mark.parametrize("layer", ["features.1", "features.2", "features.5"])  # rows of 28, 14 and 5 numbers
def test_a_map_is_the_picture_of_its_numbers(page: sync_api.Page, run: Run, layer: str) -> None:
    """Of numbers from 0 on: 0 is the scale's dark, the layer's largest its lightest, and more is never darker."""
    at(page, f"inside?ref=test:11&layer={layer}")
    output = walked(run, 11).step(layer).output.numpy()
    for channel in (0, 3):
        image = page.locator(f".layer[data-name='{layer}'] .map[data-channel='{channel}'] img")
        kind, _, text = image.get_attribute("src").partition(";base64,")
        assert kind == "data:image/bmp"
        assert image.evaluate("it => [it.naturalHeight, it.naturalWidth]") == [*output.shape[1:]]
        with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert {*map(tuple, pixels[output[channel] == 0])} <= {(20, 24, 29)}
        assert {*map(tuple, pixels[output[channel] == output.max()])} <= {(255, 243, 214)}
        light = pixels.sum(2).flatten()[output[channel].flatten().argsort()]
        assert (np.diff(light) >= -2).all()  # each of the three is rounded
        assert light[-1] > light[0]


def test_a_linear_unit_and_the_probabilities_are_told_in_numbers(page: sync_api.Page, run: Run) -> None:
    found = walked(run, 5)
    at(page, "inside?ref=test:5&layer=classifier.5&channel=4")
    await_told(page, found.logits[4].item())
    products = [
        float(t.strip(" =").replace("−", "-")) for t in page.locator(".connections td:nth-child(4)").all_inner_texts()
    ]
    terms = [float(text.replace("−", "-")) for text in page.locator(".total .term b").all_inner_texts()]
    assert sum(products) == pytest.approx(terms[0], abs=0.01)
    page.get_by_role("button", name=re.compile("^Probabilities")).click()
    rows = page.locator(".softmax tbody tr")
    sync_api.expect(rows).to_have_count(10)
    powers = [float(t.replace("−", "-")) for t in page.locator(".softmax tbody td:nth-child(4)").all_inner_texts()]
    assert max(powers) == 1
    assert int(np.argmax(powers)) == int(found.logits.argmax())


def test_a_channel_that_is_switched_off_moves_the_probabilities(page: sync_api.Page, run: Run) -> None:
    page.emulate_media(reduced_motion="reduce")
    at(page, "inside?ref=test:11&layer=features.0&channel=0")
    on = page.locator(".layer.Softmax .value").all_inner_texts()
    assert not page.locator(".layer.Softmax .mark").first.is_visible()
    page.get_by_role("switch").click()
    sync_api.expect(page.get_by_role("switch")).to_have_attribute("aria-checked", "false")
    sync_api.expect(page.locator(".layer.Softmax .mark").first).to_be_visible()
    assert "off=features.0:0" in page.url
    page.locator(".layer .map[data-channel='1']").nth(1).click()
    page.get_by_role("switch").click()
    sync_api.expect(page.locator(".chip")).to_have_count(2)
    page.wait_for_load_state("networkidle")
    layer = page.url.partition("layer=")[2].partition("&")[0]
    logits = walked(run, 11, {"features.0": [0], layer: [1]}).logits
    wanted = probabilities_of(logits[None].numpy(), run.model_file().manifest.calibration.temperature)[0]
    fills = page.locator(".layer.Softmax .fill").evaluate_all(
        "bars => bars.map(bar => Number(bar.style.transform.slice(7, -1)))"
    )
    assert fills == pytest.approx(wanted.tolist(), abs=1e-4)
    page.get_by_role("button", name="All on again").click()
    sync_api.expect(page.locator(".chip")).to_have_count(0)
    sync_api.expect(page.locator(".layer.Softmax .value")).to_have_text(on)


def test_the_window_slides_and_rests_and_not_where_motion_is_unwanted(page: sync_api.Page) -> None:
    page.emulate_media(reduced_motion="reduce")
    at(page, "inside?ref=test:11&layer=features.0&channel=1")
    sync_api.expect(page.locator(".play")).to_have_text("Slide over the picture")
    page.locator(".play").click()
    sync_api.expect(page.locator(".play")).to_have_text("Stop")
    sync_api.expect(page.locator(".cover").last).to_have_attribute("visibility", "visible")
    places = {page.locator(".window").last.get_attribute("y") for _ in range(12) if page.wait_for_timeout(150) is None}
    assert len(places) > 2
    page.locator(".play").click()
    sync_api.expect(page.locator(".cover").last).to_have_attribute("visibility", "hidden")


def test_from_a_cell_of_the_matrix_to_an_image_to_its_inside(page: sync_api.Page, run: Run) -> None:
    at(page, "mistakes")
    counts = np.array(run.metrics["test"]["confusion"])
    np.fill_diagonal(counts, 0)
    label, taken = np.unravel_index(counts.argmax(), counts.shape)
    page.locator(f"[data-cell='{label},{taken}']").click()
    sync_api.expect(page.locator("section h2[aria-live]")).to_have_text(f"{counts.max()} mistakes")
    sync_api.expect(page.locator(".gallery li")).to_have_count(int(counts.max()))
    page.locator(".gallery .doubt-it").first.click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the list as CSV").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0] == "split,index,file,label,predicted"
    assert re.fullmatch(rf'test,\d+,,"{label}","{taken}"', lines[1])
    page.locator(".gallery a").first.click()
    sync_api.expect(page.locator(".named")).to_contain_text(f"truly {label}")
    sync_api.expect(page.locator(".answered strong")).to_have_text(str(taken))


def test_the_playground_computes_as_torch_does(page: sync_api.Page, run: Run) -> None:
    at(page, "playground?ref=test:4&kernel=3&stride=2&padding=2&dilation=2&preset=sobelx")
    sync_api.expect(page.locator("figure .caption").last).to_contain_text("After: 14 × 14")
    image = run.load_data().test.images[4]
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    for op, wanted in (
        (
            "convolution",
            torch.nn.functional.conv2d(image[None] / 255, kernel[None, None], stride=2, padding=2, dilation=2),
        ),
        ("max", torch.nn.functional.max_pool2d(image[None] / 255, 5, 2, 2)),
        ("mean", torch.nn.functional.avg_pool2d(image[None] / 255, 5, 2, 2)),
    ):
        settings = {
            "op": op,
            "kernel": 3 if op == "convolution" else 5,
            "stride": 2,
            "padding": 2,
            "dilation": 2 if op == "convolution" else 1,
        }
        made = page.evaluate(
            """async ([settings, pixels, weights]) => {
                const { slide } = await import("/drawing/windows.js");
                const plane = Float32Array.from(pixels);
                const out = slide({ height: 28, width: 28, channels: [plane] }, { ...settings, weights });
                return [out.height, out.width, ...out.channels[0]];
            }""",
            [settings, (image.flatten() / 255).tolist(), kernel.tolist()],
        )
        assert made[:2] == [*wanted.shape[2:]]
        assert made[2:] == pytest.approx(wanted.flatten().tolist(), abs=1e-5)
    page.get_by_label("Stride").focus()
    page.keyboard.press("ArrowRight")
    sync_api.expect(page.locator("output[for=s-stride]")).to_have_text("3")
    assert "stride=3" in page.url


def test_a_training_is_watched_and_stopped(browser: sync_api.Browser, tmp_path: Path) -> None:
    words = ("mnist-5k", "-m", "lenet5", "--epochs", "200", "--limit", "600", "--out", tmp_path, "--name", "live")
    with started("train", *words, "--open", "--no-plots", "--no-report") as (process, address):
        context = browser.new_context(locale="en-US")
        try:
            page = context.new_page()
            with watched(page):
                page.goto(address)
                page.goto(address.partition("?")[0] + "#/training")
                sync_api.expect(page.locator(".status")).to_have_text(re.compile("Training now"))
                grown = "document.querySelector('.series.one polyline')?.points.length > 2"
                page.wait_for_function(grown, timeout=120_000)
                sync_api.expect(page.locator(".filters-formed canvas").first).to_be_visible()
                page.get_by_role("button", name="Stop and keep").click()
                sync_api.expect(page.locator(".status")).to_contain_text("Trained with", timeout=120_000)
                sync_api.expect(page.locator(".tiles")).to_contain_text("Test accuracy")
        finally:
            context.close()
            process.send_signal(signal.SIGINT)  # the page stays open until then, also where something went wrong
            process.wait(60)
    assert Run.open(tmp_path / "live").finished


def test_the_slider_goes_back_to_an_epoch(page: sync_api.Page) -> None:
    at(page, "training")
    sync_api.expect(page.locator(".filters-formed canvas")).to_have_count(6)
    newest = page.locator(".filters-formed canvas").first.evaluate("canvas => canvas.toDataURL()")
    page.get_by_label("After epoch").focus()
    page.keyboard.press("Home")
    sync_api.expect(page.locator("output[for=epoch]")).to_have_text("0, untrained")
    page.wait_for_function("old => document.querySelector('.filters-formed canvas').toDataURL() !== old", arg=newest)
    page.get_by_role("link", name="Look inside at this epoch").click()
    sync_api.expect(page.locator("output[for=walk-epoch]")).to_have_text("0, untrained")


def test_two_runs_are_compared_on_the_same_picture(page: sync_api.Page, run: Run, second: Run) -> None:
    at(page, "compare?ref=test:9")
    for place, each in enumerate((run, second)):
        best = str(int(walked(each, 9).logits.argmax()))
        sync_api.expect(page.locator(".side-run").nth(place).locator(".verdict strong")).to_have_text(best)
    page.get_by_role("button", name=re.compile("only A is right")).click()
    page.locator(".gallery button").first.click()
    sync_api.expect(page.locator(".side-run").first.locator(".verdict strong")).to_have_text(
        re.sub(r"\D", "", page.locator(".chooser .named").inner_text().rpartition("truly")[2])
    )


def test_runs_that_answered_other_images_are_given_one_picture(
    browser: sync_api.Browser, run: Run, tmp_path: Path
) -> None:
    fewer = fit_undrawn(RECIPE.override({"epochs": 1}), load("mnist-5k", RECIPE, limit=300), tmp_path)
    with started("open", fewer.path, run.path, "--no-browser") as (_, address):
        context = browser.new_context(locale="en-US", reduced_motion="reduce")
        page = context.new_page()
        with watched(page):
            page.goto(address)
            page.goto(address.partition("?")[0] + "#/compare?ref=test:7")
            sync_api.expect(page.locator(".lead")).to_contain_text("not tested on the same images")
            image = fewer.load_data().test.images[7]
            for place, each in enumerate((fewer, run)):
                best = int(dissect(each.model_file().model, image).logits.argmax())
                sync_api.expect(page.locator(".side-run .verdict strong").nth(place)).to_have_text(str(best))
            sources = page.locator(".side-run .seen").evaluate_all("images => images.map(image => image.src)")
            assert [png_of(page, source) for source in sources] == [image[0].tolist()] * 2
        context.close()


def png_of(page: sync_api.Page, source: str) -> list[list[int]]:
    with Image.open(io.BytesIO(page.request.get(source).body())) as picture:
        pixels: list[list[int]] = np.asarray(picture).tolist()
    return pixels


def test_a_heat_map_that_cannot_be_made_is_told(context: sync_api.BrowserContext) -> None:
    page = context.new_page()
    at(page, "try?ref=test:4&heat=1")
    sync_api.expect(page.locator("img.heat")).to_be_visible()
    page.reload()
    sync_api.expect(page.locator("img.heat")).to_be_visible()  # the address knows it
    refusal = {"status": 422, "content_type": "application/json", "body": '{"error": "no heat here"}'}
    page.route("**/api/heat*", lambda route: route.fulfill(**refusal))
    page.locator(".strip button").nth(5).click()
    sync_api.expect(page.locator(".sees .problem")).to_have_text("no heat here")
    sync_api.expect(page.locator("img.heat")).to_be_hidden()
    at(page, "compare?ref=test:9")
    sync_api.expect(page.locator(".side-run .problem")).to_have_text(["no heat here"] * 2)
    sync_api.expect(page.locator(".side-run img.heat:visible")).to_have_count(0)
    page.close()


def test_the_camera_goes_off_with_the_room(context: sync_api.BrowserContext) -> None:
    page = context.new_page()
    at(page, "try")
    page.evaluate(
        """() => {
            const canvas = document.createElement("canvas");
            canvas.getContext("2d").fillRect(0, 0, 9, 9);
            window.asked = new Promise((give) => { window.allow = () => give(window.film = canvas.captureStream()); });
            navigator.mediaDevices.getUserMedia = () => window.asked;
        }"""
    )
    page.get_by_role("button", name="Camera").click()
    page.get_by_role("link", name="Playground").click()
    sync_api.expect(page.get_by_role("heading", level=1)).to_have_text("Playground")
    page.evaluate("window.allow()")
    page.wait_for_function("window.film.getTracks().every(track => track.readyState === 'ended')")
    page.close()


def test_the_language_is_switched_and_remembered(page: sync_api.Page) -> None:
    at(page, "try")
    page.get_by_role("button", name="中文").click()
    sync_api.expect(page.get_by_role("heading", level=1)).to_have_text("试试你的网络")
    for room in ROOMS:
        at(page, room)
        page.reload(wait_until="networkidle")
        assert page.evaluate("document.documentElement.lang") == "zh-CN"
        text = page.locator("main").inner_text()
        assert re.search("[一-鿿]", text)
        assert not re.search(r"\b(the|network|picture|mistakes)\b", text), room
    page.get_by_role("button", name="English").click()
    sync_api.expect(page.get_by_role("heading", level=1)).to_have_text("Compare")


def test_the_keyboard_is_enough(page: sync_api.Page, run: Run) -> None:
    page.emulate_media(reduced_motion="reduce")
    at(page, "try")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    sync_api.expect(page.get_by_role("heading", level=1)).to_have_text("Inside")
    page.locator(".layer[data-name='features.1'] .map[data-channel]").first.wait_for()
    page.locator(".layer[data-name='features.0'] .map").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.closest('.layer').dataset.name") == "features.1"
    page.keyboard.press("Enter")
    sync_api.expect(page.locator(".title code")).to_have_text("features.1")
    page.wait_for_load_state("networkidle")
    page.locator(".stage").last.focus()
    for key in ("ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    page.wait_for_url("**&row=*")
    query = dict(pair.split("=") for pair in page.url.partition("?")[2].split("&"))
    output = walked(run, 0).step("features.1").output[int(query["channel"])]
    sync_api.expect(page.locator(".unseen[role=status]")).to_contain_text(
        f"Row {query['row']}, column {query['column']}"
    )
    await_told(page, output[int(query["row"]), int(query["column"])].item())
    page.get_by_role("switch").focus()
    page.keyboard.press("Space")
    sync_api.expect(page.get_by_role("switch")).to_have_attribute("aria-checked", "false")
    sync_api.expect(page.get_by_role("switch")).to_be_focused()
    at(page, "mistakes")
    page.locator(".matrix button").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.cell") == "1,1"


@pytest.mark.parametrize("room", ROOMS)
def test_a_phone_shows_every_room_without_scrolling_sideways(context: sync_api.BrowserContext, room: str) -> None:
    page = context.new_page()
    page.set_viewport_size({"width": 390, "height": 844})
    with watched(page):
        at(page, room)
        sync_api.expect(page.get_by_role("heading", level=1)).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


@pytest.mark.skipif(
    not AXE, reason="CONVLENS_AXE names no axe.min.js (npm install axe-core, outside of the repository)"
)
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    "address",
    [
        *ROOMS,
        "inside?layer=features.2",
        "inside?layer=classifier.1",
        "inside?layer=softmax",
        "inside?layer=features.1&off=features.0:1",
    ],
)
def test_axe_finds_nothing(page: sync_api.Page, address: str, theme: str) -> None:
    page.emulate_media(color_scheme=theme, reduced_motion="reduce")
    at(page, address)
    page.wait_for_timeout(300)
    page.evaluate(Path(AXE).read_text(encoding="utf-8"))
    found = page.evaluate(
        "axe.run().then(result => result.violations.map(v => `${v.id}: ${v.nodes.map(n => n.target).join(' | ')}`))"
    )
    assert found == []


def test_a_view_is_saved_as_png_and_svg(page: sync_api.Page) -> None:
    page.emulate_media(reduced_motion="reduce")
    at(page, "inside?ref=test:3")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save this view as PNG").click()
    with Image.open(download.value.path()) as picture:
        assert picture.width > 2000
        assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 30  # there is something on it
    with page.expect_download() as download:
        page.get_by_role("button", name="as SVG").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert text.startswith("<svg")
    assert "data:image/png" in text


def test_a_dead_server_is_a_sentence_and_it_goes_on_by_itself(context: sync_api.BrowserContext) -> None:
    page = context.new_page()  # its failed requests are meant to be on the console
    at(page, "inside?ref=test:1")
    page.route("**/api/**", lambda route: route.abort())
    page.get_by_role("button", name="Next image").click()
    sync_api.expect(page.locator(".banner")).to_contain_text("The server does not answer")
    assert page.locator(".layers").is_visible()
    page.unroute("**/api/**")
    sync_api.expect(page.locator(".banner")).to_be_hidden(timeout=60_000)
    sync_api.expect(page.locator(".named")).to_contain_text("Image test 2")
    page.close()


def test_a_dead_server_leaves_every_room_open(context: sync_api.BrowserContext) -> None:
    page = context.new_page()
    at(page, "try")
    page.route("**/*", lambda route: route.abort())
    for room in ("Inside", "Mistakes", "Playground", "Training", "Compare"):
        page.get_by_role("link", name=room).click()
        sync_api.expect(page.get_by_role("heading", level=1)).to_have_text(room)
        sync_api.expect(page.locator(".banner")).to_contain_text("The server does not answer")
        sync_api.expect(page.locator("main .problem")).to_have_count(0)
    page.unroute("**/*")
    sync_api.expect(page.locator(".side-run .verdict strong")).to_have_count(2, timeout=60_000)
    page.close()


def test_what_the_server_refuses_is_told_where_it_belongs(context: sync_api.BrowserContext) -> None:
    page = context.new_page()
    at(page, "inside?ref=test:999999")
    sync_api.expect(page.locator("main .problem")).to_contain_text("test:999999")
    at(page, "playground?ref=up:0123456789abcdef")
    sync_api.expect(page.locator("main .problem")).to_contain_text("not kept any more")
    page.get_by_role("button", name="中文").click()
    sync_api.expect(page.locator("main .problem")).to_have_text(re.compile("不在内存中.*4,096"))
    at(page, "inside?ref=test:999999")
    sync_api.expect(page.locator("main .problem")).to_have_text(
        re.compile(r"没有图像 test:999999：test 部分有 [\d,]+ 张")
    )
    page.get_by_role("button", name="English").click()
    at(page, "nowhere")
    sync_api.expect(page.get_by_role("heading", level=1)).to_have_text("Try your network")
    page.close()


def test_two_tabs_work_side_by_side(context: sync_api.BrowserContext) -> None:
    first, other = context.new_page(), context.new_page()
    at(first, "inside?ref=test:1&layer=features.0&channel=1")
    at(other, "inside?ref=test:2&layer=features.3&channel=2")
    sync_api.expect(first.locator(".title")).to_contain_text("Channel 1 of 6")
    sync_api.expect(other.locator(".title")).to_contain_text("Channel 2 of 16")
    first.close()
    other.close()


def test_a_photograph_is_dropped_on_a_network_of_ones_own_pictures(browser: sync_api.Browser, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    for name, colour in (("red", (200, 40, 40)), ("green", (40, 180, 60)), ("blue", (40, 60, 210))):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(30):
            noise = numbers.integers(-40, 40, (32, 40, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    run = fit_undrawn(COLOURS, load(tmp_path / "pictures", COLOURS), tmp_path / "runs")
    Image.new("RGB", (320, 200), (210, 50, 45)).save(tmp_path / "mine.jpg")
    with started("open", run.path, "--no-browser") as (_, address):
        context = browser.new_context(locale="en-US", reduced_motion="reduce")  # no window slides
        page = context.new_page()
        with watched(page):
            page.goto(address, wait_until="networkidle")
            sync_api.expect(page.locator(".dropzone")).to_be_visible()
            page.set_input_files("input[type=file]", tmp_path / "mine.jpg")
            sync_api.expect(page.locator(".verdict strong")).to_have_text("red")
            page.get_by_role("link", name="See how it got there").click()
            sync_api.expect(page.locator(".named")).to_have_text("Your picture")
            sync_api.expect(page.locator(".total .result b")).to_be_visible()
            page.goto(address.partition("?")[0] + "#/compare")
            sync_api.expect(page.locator(".empty")).to_contain_text("Only one run is open")
        context.close()


def test_a_shortcut_is_drawn_over_each_block_of_a_residual_network(browser: sync_api.Browser, tmp_path: Path) -> None:
    recipe = Recipe(epochs=1).override({"model.name": "resnet20"})
    run = fit_undrawn(recipe, load("mnist-5k", recipe, limit=60), tmp_path)
    ends = """paths => paths.map(path => {
        const column = name => document.querySelector(`.layer[data-name="${name}"]`).getBoundingClientRect();
        const x = at => path.getPointAtLength(at).x + path.ownerSVGElement.getBoundingClientRect().left;
        const { from, to } = path.dataset;
        return [from, to, x(0) - column(from).right, x(path.getTotalLength()) - column(to).left];
    })"""
    blocks = range(9)  # three of each width
    given = ["stem.2", *(f"blocks.{i}.relu#2" for i in blocks)]
    with started("open", run.path, "--no-browser") as (_, address):
        context = browser.new_context(locale="en-US", reduced_motion="reduce")
        context.new_page().goto(address)
        for width, theme in ((1440, "light"), (390, "dark")):
            page = context.new_page()
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=theme)
            with watched(page):
                page.goto(
                    address.partition("?")[0] + "#/inside?ref=test:0&layer=blocks.4.first.0", wait_until="networkidle"
                )
                curves = page.locator(".shortcuts path.shortcut")
                sync_api.expect(curves).to_have_count(len(blocks))  # also while their ReLUs are not shown
                sync_api.expect(page.get_by_role("img", name="9 shortcuts over the layers")).to_be_visible()
                sync_api.expect(page.locator(".layer.chosen .head")).to_contain_text("A sum goes in here")
                page.get_by_label("Show all 61 layers").check()
                sync_api.expect(page).to_have_url(re.compile("&all=1"))  # it can be bookmarked
                page.reload(wait_until="networkidle")
                sync_api.expect(page.get_by_label("Show all 61 layers")).to_be_checked()
                page.wait_for_function(
                    f"() => ({ends})([...document.querySelectorAll('path.shortcut')]).every(e => e[3] < 0)"
                )
                found = {to: (begins, start, end) for begins, to, start, end in curves.evaluate_all(ends)}
                assert found.keys() == set(given[1:])
                for block in blocks:
                    begins, start, end = found[given[block + 1]]
                    assert begins == given[block]
                    assert 0 <= start < 10
                    assert -10 < end <= 0
                page.locator(".layer[data-name='blocks.4.relu#2'] .head").click()
                sync_api.expect(page.locator("path.shortcut.near")).to_have_count(
                    2
                )  # that which comes, and that which goes
                said = "Batch norm blocks.4.second.1 and ReLU blocks.3.relu#2"
                sync_api.expect(page.locator(".landscape [role=status]")).to_contain_text(said)
            page.close()
        context.close()


def test_a_test_image_takes_the_place_of_a_drawing_on_its_way(page: sync_api.Page) -> None:
    at(page, "try")
    page.evaluate(
        """async () => {
            const real = window.fetch;
            window.fetch = async (...asked) => {
                window.fetch = real;
                await new Promise((done) => setTimeout(done, 500));
                return real(...asked);
            };
            document.querySelector("main").paper.draw([[[0.5, 0.2], [0.5, 0.8]]]);
            while (window.fetch !== real) await new Promise(requestAnimationFrame);
        }"""
    )
    page.locator(".strip button").nth(4).click()
    sync_api.expect(page.locator(".doubt")).to_contain_text(re.compile("Right|Wrong"))
    page.wait_for_timeout(800)
    sync_api.expect(page.locator(".doubt")).to_contain_text(re.compile("Right|Wrong"))
    draw(page, 1)
    sync_api.expect(page.locator(".verdict strong")).to_have_text("1")  # the pad is not dead
    page.set_input_files(
        "input[type=file]", files=[{"name": "0.png", "mimeType": "image/png", "buffer": png(torch.eye(28)[None] * 255)}]
    )
    note = page.locator(".given .small[role=status]")
    sync_api.expect(note).to_contain_text("28 × 28")
    draw(page, 1)
    sync_api.expect(note).to_be_empty()
    page.wait_for_url("**ref=up:*")


def test_a_file_takes_the_place_of_a_stroke_of_the_same_moment(page: sync_api.Page) -> None:
    """Between the stroke and the frame in which it would be asked about."""
    at(page, "try")
    page.evaluate(
        """png => {
            const files = new DataTransfer(), input = document.querySelector("input[type=file]");
            const bytes = Uint8Array.from(atob(png), (byte) => byte.charCodeAt(0));
            files.items.add(new File([bytes], "0.png", { type: "image/png" }));
            document.querySelector("main").paper.draw([[[0.5, 0.2], [0.5, 0.8]]]);
            input.files = files.files;
            input.dispatchEvent(new Event("change"));
        }""",
        base64.b64encode(png(torch.eye(28)[None] * 255)).decode(),
    )
    sync_api.expect(page.locator(".given .small[role=status]")).to_contain_text("28 × 28")
    page.wait_for_timeout(500)
    sync_api.expect(page.locator(".given .small[role=status]")).to_contain_text("28 × 28")


def test_a_file_takes_the_place_of_a_drawing_that_is_being_packed(page: sync_api.Page) -> None:
    """Between the question about the drawing and its PNG, which a busy machine takes its time for."""
    at(page, "try")
    page.evaluate(
        """() => {
            const real = HTMLCanvasElement.prototype.toBlob;
            HTMLCanvasElement.prototype.toBlob = function (...asked) {
                window.packing = true;
                setTimeout(() => { real.apply(this, asked); window.packed = true; }, 3000);
            };
            document.querySelector("main").paper.draw([[[0.5, 0.2], [0.5, 0.8]]]);
        }"""
    )
    page.wait_for_function("() => window.packing")
    page.set_input_files(
        "input[type=file]", files=[{"name": "0.png", "mimeType": "image/png", "buffer": png(torch.eye(28)[None] * 255)}]
    )
    note, seen = page.locator(".given .small[role=status]"), page.locator("img.seen")
    sync_api.expect(note).to_contain_text("28 × 28")
    picture = seen.get_attribute("src")
    page.wait_for_function("() => window.packed")
    page.wait_for_timeout(1500)  # the drawing is on its way to the server, and back
    assert seen.get_attribute("src") == picture
    sync_api.expect(note).to_contain_text("28 × 28")


def test_what_is_rubbed_out_leaves_no_answer(page: sync_api.Page) -> None:
    at(page, "try")
    draw(page, 1)
    sync_api.expect(page.locator(".verdict strong")).to_have_text("1")
    page.get_by_role("button", name="Rubber").click()
    page.get_by_role("slider", name="Pen").fill("36")
    box = page.locator("canvas.pad").bounding_box()
    assert box
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    for i in range(24):
        page.mouse.move(box["x"] + box["width"] * (0.01 if i % 2 else 0.99), box["y"] + box["height"] * i / 23, steps=3)
    page.mouse.up()
    sync_api.expect(page.locator(".verdict")).to_contain_text("Waiting")


def test_a_refused_answer_is_told_and_the_bars_come_back(context: sync_api.BrowserContext) -> None:
    page = context.new_page()
    at(page, "training")
    refusal = {"status": 422, "content_type": "application/json", "body": '{"error": "not this one"}'}
    page.route("**/api/look*", lambda route: route.fulfill(**refusal))
    at(page, "training?ref=test:5")
    sync_api.expect(page.locator("main .problem")).to_have_text("not this one")
    page.unroute("**/api/look*")
    at(page, "training?ref=test:6")
    sync_api.expect(page.locator("main .problem")).to_have_count(0)
    sync_api.expect(page.locator(".epoch .bars .best .value")).to_contain_text("%")
    page.get_by_role("button", name="Next image").click()
    page.wait_for_url("**ref=test:7*")
    sync_api.expect(page.locator(".seen-small")).to_have_attribute("src", re.compile("test%3A7"))
    page.close()


def test_without_its_data_no_room_shows_what_is_not_there(
    browser: sync_api.Browser, run: Run, second: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("CONVLENS_DATA", "CONVLENS_CACHE"):  # where MNIST may lie on this machine
        monkeypatch.setenv(place, str(tmp_path))
    for name, each in (("one", run), ("other", second)):
        shutil.copytree(each.path, tmp_path / name)
        file = tmp_path / name / "environment.json"
        file.write_text(file.read_text().replace('"mnist-5k"', '"mnist"'))
    with started("open", tmp_path / "one", tmp_path / "other", "--no-browser") as (_, address):
        context = browser.new_context(locale="en-US", reduced_motion="reduce")
        page = context.new_page()
        page.goto(address)
        for room in ROOMS:
            page.goto(address.partition("?")[0] + f"#/{room}", wait_until="networkidle")
            sync_api.expect(page.get_by_text("on this disk").first, room).to_be_visible()
            page.wait_for_timeout(300)
            shown = "it => it.checkVisibility() && it.currentSrc && it.complete"
            broken = f"[...document.images].filter({shown}).filter(it => !it.naturalWidth).length"
            assert page.evaluate(broken) == 0, room
            sync_api.expect(page.locator("main a:not([href]):visible")).to_have_count(0)
        context.close()


def test_a_server_that_was_started_anew_is_told_as_such(context: sync_api.BrowserContext) -> None:
    page = context.new_page()
    at(page, "inside?ref=test:1")
    page.route("**/api/**", lambda route: route.fulfill(status=401, json={"error": "no"}))
    page.get_by_role("button", name="Next image").click()
    sync_api.expect(page.locator(".banner")).to_have_text("The server was started anew; open the address it printed.")
    page.unroute("**/api/**")
    sync_api.expect(page.locator(".named")).to_contain_text("Image test 2", timeout=60_000)
    sync_api.expect(page.locator(".banner")).to_be_hidden()
    page.close()


def test_the_keyboard_stays_where_it_is(page: sync_api.Page) -> None:
    at(page, "try")
    page.get_by_role("link", name="Compare").focus()
    page.keyboard.press("Enter")
    sync_api.expect(page.get_by_role("heading", level=1)).to_be_focused()
    both = page.get_by_role("button", name=re.compile("^both"))
    both.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**kind=both*")
    sync_api.expect(both).to_have_attribute("aria-pressed", "true")
    sync_api.expect(both).to_be_focused()
    page.get_by_role("button", name="Next page").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**page=1*")
    page.wait_for_load_state("networkidle")
    sync_api.expect(page.get_by_role("button", name="Next page")).to_be_focused()


def test_a_room_follows_the_run_of_its_address(page: sync_api.Page, run: Run, second: Run) -> None:
    for number, each in enumerate((run, second)):
        at(page, f"try?ref=test:9&run={number}")
        logits = walked(each, 9).logits
        shares = probabilities_of(logits[None].numpy(), each.model_file().manifest.calibration.temperature)[0]
        best = "document.querySelectorAll('.answer .fill')[k].style.transform"
        told = f"([k, p]) => Math.abs(new DOMMatrix({best}).a - p) < 1e-4"
        page.wait_for_function(told, arg=[int(shares.argmax()), float(shares.max())])
    at(page, "try?run=1")
    draw(page, 3)
    page.wait_for_url("**ref=up:*")
    at(page, "compare?" + page.url.partition("?")[2])  # a picture that only the second has
    sync_api.expect(page.locator(".side-run .verdict strong")).to_have_count(2)
    sync_api.expect(page.locator("main .problem")).to_have_count(0)


def test_the_playground_has_no_setting_that_torch_refuses(page: sync_api.Page) -> None:
    at(page, "playground?op=mean&kernel=3&padding=4&dilation=3")
    sync_api.expect(page.locator("output[for=s-padding]")).to_have_text("1")
    sync_api.expect(page.locator("output[for=s-dilation]")).to_have_text("1")
    sync_api.expect(page.locator("figure .caption").last).to_contain_text("After: 28 × 28")
    for address in ("preset=edge&kernel=5", "preset=learned3&kernel=3", "kernel=-1&stride=0&padding=99", "op=nothing"):
        at(page, f"playground?{address}")
        sync_api.expect(page.locator("figure .caption").last).to_contain_text("After: ")
        sync_api.expect(page.locator("main .problem")).to_have_count(0)
    at(page, "playground?preset=blur")
    page.get_by_label("weight in row 1, column 1").fill("2")
    page.wait_for_url("**weights=*")
    page.reload()
    sync_api.expect(page.get_by_label("weight in row 1, column 1")).to_have_value("2")
