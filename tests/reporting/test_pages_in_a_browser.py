"""The pages as a reader uses them: in Chromium, by mouse, finger and keyboard.

They are skipped where Playwright or an installed Chromium is absent.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import evaluated_runs
import pytest
from chromium import MARKS

from multibox.commands.report import write_comparison, write_report

pytestmark = MARKS


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    data = evaluated_runs.write_dataset(root / "data")
    runs = [
        evaluated_runs.write_run(root / name, data, seed=seed, shift=shift, drops=300)
        for name, seed, shift in (("first", 0, 0), ("second", 1, 2), ("shifted", 0, 60))
    ]
    return {"report": write_report(runs[0]), "comparison": write_comparison(runs)}


@pytest.fixture
def opened(browser: Any, pages: dict[str, Path]) -> Iterator[Any]:
    """Opens a page; afterwards there must be neither an error nor a request."""
    contexts, said, asked = [], [], []

    def open_page(name: str = "report", width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=width < 500
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(pages[name].as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def column(page: Any, table: str, number: int) -> list[str]:
    cells = page.locator(f"#{table} tbody tr > :nth-child({number})")
    return [text.strip() for text in cells.all_inner_texts()]


def test_tables_are_sorted_by_click_and_by_keyboard(opened: Any) -> None:
    page = opened()
    aps = column(page, "by-class", 2)
    header = page.locator("#by-class thead th").nth(1)
    header.get_by_role("button").click()
    assert column(page, "by-class", 2) == sorted(aps, reverse=True)
    assert header.get_attribute("aria-sort") == "descending"
    header.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert column(page, "by-class", 2) == sorted(aps)
    page.locator("#by-class thead th").nth(0).get_by_role("button").click()
    assert column(page, "by-class", 1) == sorted(evaluated_runs.CLASSES, key=str.casefold)
    # The row of all classes stays below.
    assert page.locator("#by-class tfoot th").inner_text() == "all"


def test_every_number_opens_its_pictures(opened: Any) -> None:
    page = opened()
    counts = page.locator("#confusion tbody button").all()
    assert len(counts) == 6
    for button in [*counts, *page.locator("#kinds button").all()]:
        number = int(button.inner_text())
        button.click()
        dialog = page.get_by_role("dialog")
        assert dialog.locator("h2").inner_text().endswith(f": {number}")
        assert dialog.locator("li").count() == number
        assert dialog.locator("li img").count() == number
        page.keyboard.press("Escape")
        assert not dialog.is_visible()


def test_a_gallery_shows_objects_and_detections(opened: Any) -> None:
    page = opened()
    button = page.locator("#confusion button[data-gallery=cell-1-0]")
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    assert dialog.locator("h2").inner_text() == "dog detected as cat: 1"
    assert "cat 0.95 on dog" in dialog.locator("figcaption").inner_text()
    assert "test-0" in dialog.locator("figcaption").inner_text()
    assert dialog.locator("rect.object.focus, rect.detection.focus").count() == 2
    image = dialog.locator("img")
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
    dialog.get_by_role("button", name="Close").click()
    assert not dialog.is_visible()
    # The keyboard's focus returns to the number.
    assert page.evaluate("document.activeElement.dataset.gallery") == "cell-1-0"


def test_charts_show_values_and_zoom(opened: Any) -> None:
    page = opened()
    figure = page.locator("figure[data-chart=loss]")
    plot = figure.locator(".plot")
    plot.scroll_into_view_if_needed()
    box = plot.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    assert figure.locator("output").inner_text() == "step 300"
    data = json.loads(page.locator("#data").text_content())["charts"]["loss"]
    values = data["series"][0]["values"][data["places"].index(300)]
    assert figure.locator(".line b").first.inner_text() == f"{values:.3f}"
    scale = "figure => [figure.plot.scales.x.min, figure.plot.scales.x.max]"
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 40, steps=5)
    page.mouse.up()
    low, high = figure.evaluate(scale)
    assert 250 < low < 350
    assert 400 < high < 500
    figure.get_by_role("button", name="Whole range").click()
    assert figure.evaluate(scale) == [20, 600]
    plot.focus()
    page.keyboard.press("End")
    assert figure.locator("output").inner_text() == "step 600"
    page.keyboard.press("ArrowLeft")
    assert figure.locator("output").inner_text() == "step 580"
    page.keyboard.press("+")
    low, high = figure.evaluate(scale)
    assert high - low < 580
    page.keyboard.press("0")
    assert figure.evaluate(scale) == [20, 600]


def test_without_a_pointer_the_best_threshold_is_read(opened: Any) -> None:
    page = opened()
    charts = json.loads(page.locator("#data").text_content())["charts"]
    ((threshold, _),) = charts["threshold"]["marks"]
    readout = page.locator("figure[data-chart=threshold] output").inner_text()
    assert readout == f"score threshold {round(threshold, 2)}"
    # No recall is better than another.
    assert page.locator("figure[data-chart=curves] output").inner_text() == ""


def test_all_advice_is_printed(opened: Any) -> None:
    page = opened()
    assert page.locator("details").count() == 1
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details[open]").count() == 1


def test_places_without_a_picture_are_named(opened: Any) -> None:
    page = opened()
    add = r"""() => {
        const data = document.getElementById("data");
        const value = JSON.parse(data.textContent);
        value.galleries["cell-1-0"].entries.push([-1, "far away", "dog 0.20"]);
        value.galleries["cell-1-0"].count = 2;
        return JSON.stringify(value).replaceAll("<", "\\u003c");
    }"""
    changed = page.content().replace(
        page.evaluate('document.getElementById("data").textContent'), page.evaluate(add)
    )
    page.set_content(changed)
    page.locator("#confusion button[data-gallery=cell-1-0]").click()
    dialog = page.get_by_role("dialog")
    assert dialog.locator("li").count() == 1
    assert "dog 0.20 in far away" in dialog.locator("#pictures-note").inner_text()


def test_drops_are_marked_and_lines_can_be_hidden(opened: Any) -> None:
    page = opened()
    data = json.loads(page.locator("#data").text_content())["charts"]
    assert data["loss"]["marks"] == [[300, "lr 0.0001"]]
    figure = page.locator("figure[data-chart=loss]")
    line = figure.locator(".line").first
    assert line.get_attribute("aria-pressed") == "true"
    line.focus()
    page.keyboard.press("Space")
    assert line.get_attribute("aria-pressed") == "false"
    assert figure.evaluate("figure => figure.plot.series[1].show") is False


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_scheme_follows_the_system_and_the_switch(opened: Any, scheme: str) -> None:
    page = opened(scheme=scheme)
    colour = "getComputedStyle(document.body).backgroundColor"
    white, black = "rgb(255, 255, 255)", "rgb(20, 24, 29)"
    before, after = (white, black) if scheme == "light" else (black, white)
    assert page.evaluate(colour) == before
    page.locator("button.theme").click()
    assert page.evaluate(colour) == after
    page.reload()
    assert page.evaluate(colour) == after
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(colour) == white
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")
    assert page.evaluate(colour) == after


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_nothing_is_wider_than_a_phone(opened: Any, name: str) -> None:
    page = opened(name, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_names_from_data_stay_text(opened: Any) -> None:
    page = opened()
    page.on("dialog", lambda _: pytest.fail("a script of the data ran"))
    for button in page.locator("button[data-gallery]").all():
        button.click()
        page.keyboard.press("Escape")
    assert page.locator("script").count() == 2
    assert evaluated_runs.HOSTILE in column(page, "by-class", 1)
    assert evaluated_runs.HOSTILE in page.locator("#confusion").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_axe_finds_no_serious_fault(opened: Any, name: str, scheme: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    page = opened(name, scheme=scheme)
    source = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    page.evaluate(source)
    found = page.evaluate("axe.run()")["violations"]
    if name == "report":
        page.locator("#kinds button").first.click()
        found += page.evaluate("axe.run()")["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert [(each["id"], each["nodes"][0]["html"]) for each in serious] == []
