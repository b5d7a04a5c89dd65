"""The page of `serve` as a visitor uses it, in Chromium.

They are skipped where Playwright or an installed Chromium is absent.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import MARKS
from PIL import Image
from served import CLASSES, IMAGES, Served, serving, tiny_detector

pytestmark = MARKS


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(tiny_detector(), max_bytes=100_000) as service:
        yield service


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    image = Image.fromarray(IMAGES[1])
    image.save(folder / "one.png")
    image.save(folder / "two.tif")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "turned.jpg", exif=exif)
    (folder / "notes.png").write_text("no picture")
    (folder / "large.png").write_bytes(bytes(100_001))
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def opened(browser: Any, served: Served) -> Iterator[Any]:
    """Opens the page; afterwards there must be neither an error nor a request to others."""
    contexts, said, asked = [], [], []

    def open_page(width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=width < 500
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"http://{served.address}/")
        return page

    yield open_page
    for context in contexts:
        context.close()
    # Chromium reports each answer that is not 200.
    assert [text for text in said if "status of 4" not in text] == []
    own = ("blob:", "data:", f"http://{served.address}/")
    assert [url for url in asked if not url.startswith(own)] == []


def choose(page: Any, *paths: Path) -> None:
    page.set_input_files("#files", paths)
    page.locator("#status").filter(has_text="in work").wait_for(state="detached")


def test_boxes_appear_and_the_slider_filters(
    opened: Any, served: Served, files: dict[str, Path]
) -> None:
    page = opened()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    choose(page, files["one.png"])
    page.locator(".canvas img").wait_for()
    found = served.detect(files["one.png"].read_bytes(), "?threshold=0.05").json["detections"]
    count = sum(each["score"] >= 0.1 for each in found)
    assert page.locator(".box:visible").count() == count > 2
    assert page.locator("tbody tr:visible").count() == count
    assert page.locator("#status").inner_text() == f"{count} objects in 1 picture"
    # A box lies where the service says.
    best = page.locator("tbody tr").first
    assert [float(text) for text in best.locator("td").all_inner_texts()[1:]] == [
        round(each)
        for x0, y0, x1, y1 in [found[0]["box_px"]]
        for each in (x0, y0, x1 - x0, y1 - y0)
    ]
    image, box = (
        page.locator(".canvas img").bounding_box(),
        page.locator(".box").last.bounding_box(),
    )
    scale = image["width"] / 60
    assert box["x"] - image["x"] == pytest.approx(found[0]["box_px"][0] * scale, abs=1)
    before = len(requests)
    slider = page.get_by_label("Lowest score")
    slider.focus()
    page.keyboard.press("End")
    assert page.locator(".box:visible").count() == sum(each["score"] >= 0.99 for each in found)
    page.keyboard.press("Home")
    assert page.locator(".box:visible").count() == len(found)
    for _ in range(15):
        page.keyboard.press("ArrowRight")
    assert page.locator("output").inner_text() == "0.20"
    few = sum(each["score"] >= 0.2 for each in found)
    assert page.locator(".box:visible").count() == few
    toggle = page.locator("#legend button").first
    toggle.focus()
    page.keyboard.press("Space")
    assert toggle.get_attribute("aria-pressed") == "false"
    others = sum(each["score"] >= 0.2 and each["name"] != CLASSES[0] for each in found)
    assert page.locator(".box:visible").count() == others < few
    assert len(requests) == before
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    (written,) = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert written["image"] == "one.png"
    assert len(written["detections"]) == others
    page.get_by_role("button", name="Remove").click()
    assert page.locator("article").count() == 0


_SLOW_TO_SHOW = """() => {
    const decode = HTMLImageElement.prototype.decode;
    HTMLImageElement.prototype.decode = async function () {
        if (this.alt.includes("one.png")) await new Promise((done) => setTimeout(done, 500));
        return decode.call(this);
    };
}"""


def test_a_picture_may_be_detected_before_the_browser_shows_it(
    opened: Any, files: dict[str, Path]
) -> None:
    page = opened()
    page.evaluate(_SLOW_TO_SHOW)
    choose(page, files["one.png"], files["turned.jpg"])
    assert page.locator(".canvas").count() == 2
    assert "in 2 pictures" in page.locator("#status").inner_text()


def test_files_that_are_refused_say_why(opened: Any, files: dict[str, Path]) -> None:
    page = opened()
    choose(page, files["notes.png"], files["large.png"], files["one.png"])
    page.locator(".canvas img").wait_for()
    said = page.get_by_role("alert").all_inner_texts()
    assert said[0].startswith("notes.png was refused: the image is neither JPEG, PNG")
    assert said[1].startswith("large.png has 0.1 MiB, but the limit is")
    assert page.locator("article").count() == 3


def test_formats_that_the_browser_cannot_show(opened: Any, files: dict[str, Path]) -> None:
    page = opened()
    choose(page, files["two.tif"])
    page.locator(".canvas img").wait_for()
    assert page.locator(".box:visible").count() > 2
    assert page.locator(".canvas img").bounding_box()["width"] == 60
    assert "cannot show" in page.locator("article").inner_text()


def test_a_photograph_can_be_turned(opened: Any, files: dict[str, Path]) -> None:
    page = opened()
    choose(page, files["turned.jpg"])
    page.locator(".canvas img").wait_for()
    assert "60 \u00d7 49 pixels" in page.locator("article").inner_text()
    page.get_by_role("button", name="Turn it upright").click()
    page.get_by_text("49 \u00d7 60 pixels").wait_for()
    assert page.locator("article").count() == 1


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_axe_finds_no_serious_fault(
    opened: Any, served: Served, files: dict[str, Path], width: int, scheme: str
) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    page = opened(width, scheme)
    choose(page, files["one.png"], files["notes.png"])
    page.locator(".canvas img").wait_for()
    found = served.detect(files["one.png"].read_bytes()).json["detections"]
    # axe takes long for hundreds of boxes.
    page.get_by_label("Lowest score").fill(f"{found[4]['score'] - 0.01:.2f}")
    assert page.locator(".box:visible").count() >= 5
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 29)"
    )
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert [(each["id"], each["nodes"][0]["html"]) for each in serious] == []


def test_names_of_classes_and_files_stay_text(opened: Any, tmp_path: Path) -> None:
    page = opened()
    page.on("dialog", lambda _: pytest.fail("a script of a name ran"))
    hostile = tmp_path / "<img src=x onerror=alert(1)>.png"
    Image.fromarray(IMAGES[1]).save(hostile)
    choose(page, hostile)
    page.locator(".canvas img").wait_for()
    assert page.locator("article h2").inner_text() == hostile.name
    assert page.locator("b").count() == 0
    assert CLASSES[1] in page.locator("#legend").inner_text()
