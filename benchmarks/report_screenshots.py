"""Makes the pictures of docs/report.md: `python benchmarks/report_screenshots.py RUN RUN...`.

The first run is shown alone, and then beside the others. It needs Playwright and an installed
Chromium. The pictures in docs/images are from BCCD, with `multibox train ssd300-efficientnet-lite0
--on-bad skip` and the seeds 0, 1 and 2.
"""

import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
from playwright.sync_api import Page, sync_playwright

from multibox.commands.report import write_comparison, write_report

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"


def save(name: str, png: bytes) -> None:
    """Writes a screenshot as a WebP file."""
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    _, encoded = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, 75])
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / f"{name}.webp").write_bytes(encoded.tobytes())
    print(f"{name}.webp: {len(encoded) / 1000:.0f} kB")


def hover(page: Page, chart: str) -> None:
    """Moves the pointer over a chart."""
    plot = page.locator(f"figure[data-chart={chart}] .u-over")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 3)


def main(runs: list[Path]) -> None:
    """Makes all pictures."""
    report, comparison = write_report(runs[0]), write_comparison(runs)
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.goto(report.resolve().as_uri())
        save("report", page.screenshot())
        hover(page, "loss")
        save("report-loss", page.locator("figure[data-chart=loss]").screenshot())
        page.locator("#errors h2").scroll_into_view_if_needed()
        box = page.locator("#errors").bounding_box()
        assert box is not None
        clip = {"x": box["x"], "y": box["y"], "width": box["width"], "height": 1500}
        save("report-errors", page.screenshot(full_page=True, clip=_absolute(page, clip)))
        page.locator("#kinds button").first.click()
        save("report-gallery", page.get_by_role("dialog").screenshot())
        page.keyboard.press("Escape")
        phone = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
        phone.goto(report.resolve().as_uri())
        save("report-phone", phone.screenshot())
        page.goto(comparison.resolve().as_uri())
        save("report-comparison", page.screenshot())
        browser.close()


def _absolute(page: Page, clip: dict[str, float]) -> dict[str, float]:
    scrolled: float = page.evaluate("scrollY")
    return clip | {"y": clip["y"] + scrolled}


if __name__ == "__main__":
    main([Path(run) for run in sys.argv[1:]])
