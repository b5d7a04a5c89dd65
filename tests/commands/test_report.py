"""The summary page as a reader meets it: written from run folders that nothing trained."""

import base64
import hashlib
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import synthetic_runs
from markdown_it import MarkdownIt

from multibox.commands import report
from multibox.commands.report import write_report
from multibox.errors import ConfigError, StorageError
from multibox.reporting.text import printable

HOSTILE = [
    "<script>alert(1)</script>",
    "a|b",
    "`code` *bold* _it_ [x](http://x.example) ~~s~~",
    "</td></table>",
    '"><img src=x onerror=y>',
    "$\\frac{1}{0}$",
    "new\nline\r\x00\x1b[31m",
    "\u202eright to left",
    "_underscore",
    "&amp;",
    "{{ 7 * 7 }}",
    "=1+1",
    "https://x.example/?a=1",
    "漢字",
    "\ud800",
]


def complete_run(folder: Path, story: synthetic_runs.Story) -> Path:
    run = synthetic_runs.write_run(folder, story)
    synthetic_runs.add_environment(run)
    synthetic_runs.add_evaluations(run, story)
    synthetic_runs.add_samples(run, story, count=2)
    synthetic_runs.add_timings(run, story)
    return run


def page_of(run: Path) -> ElementTree.Element:
    """The page as a tree. It is written so that it is also well-formed XML."""
    return ElementTree.fromstring((run / "report" / "index.html").read_text(encoding="utf-8"))


def table_of(page: ElementTree.Element, name: str) -> list[list[str]]:
    table = page.find(f".//table[@id='{name}']")
    assert table is not None, f"no table {name}"
    return [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws nothing: for tests of what is written around the charts."""
    monkeypatch.setattr(report, "png", lambda _: b"a chart")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = complete_run(tmp_path_factory.mktemp("runs") / "tiny", synthetic_runs.TINY)
    assert write_report(run) == run / "report" / "index.html"
    return run


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    story = synthetic_runs.Story(
        classes=HOSTILE, planned=600, every=100, milestones=[600], reached=600
    )
    run = complete_run(tmp_path_factory.mktemp("runs") / "hostile", story)
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    facts["recipe"] = facts["data"]["test"]["name"] = HOSTILE[0]
    synthetic_runs.write_json(run / "run.json", facts)
    synthetic_runs.write_json(run / "environment.json", {name: name for name in HOSTILE})
    write_report(run)
    return run


def test_numbers_on_the_page_are_those_of_the_evaluations(tiny: Path) -> None:
    files = sorted((tiny / "evaluations").iterdir())
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    expected = [["", "Steps", "200", "400", "600"]]
    for name in synthetic_runs.CELLS:
        expected.append([name, "AP", *(f"{e['voc07']['AP'][name]:.4f}" for e in found)])
    expected.append(["", "mAP", *(f"{e['voc07']['mAP']:.4f}" for e in found)])
    expected.append(["(area under curve)", "mAP", *(f"{e['voc12']['mAP']:.4f}" for e in found)])
    expected.append(["(COCO)", "AP", *(f"{e['coco']['AP']:.4f}" for e in found)])
    page = page_of(tiny)
    assert table_of(page, "precision") == expected
    assert page.findtext(".//*[@id='result']") == f"{found[-1]['voc07']['mAP']:.4f}"
    assert ["AP_small", "–"] in table_of(page, "coco")  # noqa: RUF001


def test_objects_configuration_and_times_are_those_of_the_run(tiny: Path) -> None:
    page = page_of(tiny)
    counts = json.loads((tiny / "run.json").read_text(encoding="utf-8"))["data"]["train"]["objects"]
    rows = {row[0]: row[1] for row in table_of(page, "objects")[1:]}
    assert rows == {**{n: f"{c:,}" for n, c in counts.items()}, "all": f"{sum(counts.values()):,}"}
    config = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    fields = {(section, name) for section, name, _ in table_of(page, "config")[1:]}
    assert fields >= {(s, n) for s in config if isinstance(config[s], dict) for n in config[s]}
    times = {row[0]: row[1:] for row in table_of(page, "times")[1:]}
    assert times["train"][:2] == ["30", "48.0 s"]  # 30 intervals of 20 steps of 0.08 s
    assert times["evaluation"][:2] == ["3", "3 min 7 s"]  # three times 62.25 s
    text = "".join(page.itertext())
    assert "400.0 images per second in training; 3.0% of that time waiting" in text


@pytest.mark.usefixtures("quick")
def test_headline_is_the_last_step_and_the_best_is_only_named(tmp_path: Path) -> None:
    run = synthetic_runs.write_run(tmp_path / "run", synthetic_runs.TINY)
    (run / "evaluations").mkdir()
    for step, mean in ((200, 0.7), (600, 0.5)):
        found = synthetic_runs.evaluation(step, dict.fromkeys(synthetic_runs.CELLS, mean))
        synthetic_runs.write_json(run / "evaluations" / f"step-{step:08d}.json", found)
    write_report(run)
    page = page_of(run)
    assert page.findtext(".//*[@id='result']") == "0.5000"
    lead = page.findtext(".//p[@class='lead']") or ""
    assert "reaches 0.5000 mAP (11-point)" in lead
    assert "step 200 with 0.7000" in lead
    assert "not reported as the result" in lead


def test_page_carries_everything_in_itself(tiny: Path) -> None:
    page = page_of(tiny)
    for element in page.iter():
        assert element.tag not in {"link", "iframe", "object", "base", "form"}
        assert not any(name.startswith("on") for name in element.attrib)
        for name in ("src", "srcset", "href"):
            if name in element.attrib:
                assert element.attrib[name].startswith(("data:image/png;", "data:image/webp;", "#"))
    text = re.sub(r"data:[^\"]*", "", (tiny / "report" / "index.html").read_text(encoding="utf-8"))
    # The address of uPlot, in a comment.
    assert text.count("://") == 1
    assert "url(" not in text
    assert len(page.findall(".//figure[@data-chart]")) == 4
    assert len(page.findall(".//div[@class='gallery']/figure")) == 2


def test_only_the_scripts_of_the_package_may_run(tiny: Path) -> None:
    page = page_of(tiny)
    scripts = list(page.iter("script"))
    assert [script.get("type") for script in scripts] == ["application/json", None]
    policy = page.find(".//meta[@http-equiv='Content-Security-Policy']")
    assert policy is not None
    content = policy.attrib["content"]
    assert content.startswith("default-src 'none'; img-src data:; ")
    written = (tiny / "report" / "index.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", written, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert content.endswith(f"script-src 'sha256-{digest}'")
    assert "The MIT License" in script


def test_markdown_has_its_pictures_beside_it(tiny: Path) -> None:
    text = (tiny / "report" / "report.md").read_text(encoding="utf-8")
    named = set(re.findall(r"!\[[^]]*\]\(([^)]+)\)", text))
    beside = {path.name for path in (tiny / "report").iterdir()} - {"index.html", "report.md"}
    assert named == beside
    assert {"loss.png", "average-precision.png", "precision-recall.png"} < named


def test_hostile_names_stay_text_in_html(hostile: Path) -> None:
    page = page_of(hostile)
    assert len(list(page.iter("script"))) == 2
    data = next(page.iter("script")).text or ""
    assert not set(data) & set("<>&")
    names = {series["name"] for series in json.loads(data)["charts"]["curves"]["series"]}
    assert names == set(map(printable, HOSTILE))
    assert [row[0] for row in table_of(page, "by-class")[1:-1]] == [*map(printable, HOSTILE)]
    assert page.findtext(".//h1") == f"{HOSTILE[0]}: training summary"
    assert len(table_of(page, "environment")) == len(HOSTILE) + 1


def test_hostile_names_stay_text_in_markdown(hostile: Path) -> None:
    reader = MarkdownIt("gfm-like", {"linkify": False, "xhtmlOut": True})
    html = reader.render((hostile / "report" / "report.md").read_text(encoding="utf-8"))
    allowed = "h1 h2 p img table thead tbody tr th td strong ul li"
    assert set(re.findall(r"<([a-z0-9]+)", html)) == set(allowed.split())
    page = ElementTree.fromstring(f"<body>{html}</body>")
    names = ["".join(row[0].itertext()) for row in page.findall(".//table")[0].iter("tr")]
    assert names[1 : len(HOSTILE) + 1] == [printable(name) for name in HOSTILE]
    assert "://" not in (hostile / "report" / "report.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("quick")
def test_stopped_run_says_what_is_not_there_yet(tmp_path: Path) -> None:
    run = synthetic_runs.write_run(tmp_path / "run", synthetic_runs.STOPPED)
    write_report(run)
    text = "".join(page_of(run).itertext())
    assert "for 1,300 of 20,000 steps, has not been evaluated yet" in text
    for missing in (
        "There is no evaluation yet.",
        "There are no curves yet.",
        "There are no pictures yet.",
        "The environment was not recorded.",
        "No times have been recorded yet.",
    ):
        assert missing in text
        assert missing in (run / "report" / "report.md").read_text(encoding="utf-8")
    assert (run / "report" / "loss.png").exists()


@pytest.mark.usefixtures("quick")
def test_run_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    run = synthetic_runs.write_run(tmp_path / "run", synthetic_runs.STOPPED)
    (run / "metrics.jsonl").unlink()
    write_report(run)
    assert "Nothing has been logged yet." in "".join(page_of(run).itertext())


@pytest.mark.usefixtures("quick")
def test_reference_stands_beside_with_the_difference(tmp_path: Path) -> None:
    run = synthetic_runs.write_run(tmp_path / "run", synthetic_runs.LIKE_THE_REFERENCE)
    synthetic_runs.add_evaluations(run, synthetic_runs.LIKE_THE_REFERENCE)
    write_report(run, beside="ssd-keras-voc0712")
    page = page_of(run)
    rows = table_of(page, "precision")
    assert rows[0][-2:] == ["ref. 102k", "difference"]
    byname = {row[0]: row for row in rows}
    own = float(byname["aeroplane"][-3])
    assert byname["aeroplane"][-2] == "0.7904"
    gap = float(byname["aeroplane"][-1].replace("−", "-"))  # noqa: RUF001
    assert gap == pytest.approx(own - 0.7904, abs=1e-4)
    assert byname["(reference)"][2:7] == ["0.6960", "0.7260", "0.7380", "0.7660", "0.7709"]
    loss = {row[0]: row[1:] for row in table_of(page, "loss-beside")[1:]}
    assert (loss["105,000"][1], loss["105,000"][4]) == ("3.85", "4.32")
    text = (run / "report" / "report.md").read_text(encoding="utf-8")
    assert "commit 3ac9ada" in text
    assert "|  0.7904     |" in text


@pytest.mark.parametrize("name", ["ssd-kears", "../config", ""])
def test_unknown_reference_is_refused_with_those_there_are(tiny: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="There are: ssd-keras-voc0712"):
        write_report(tiny, beside=name)


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"it has no config\.json"):
        write_report(tmp_path)


@pytest.mark.usefixtures("quick")
def test_earlier_page_stays_whole_when_a_new_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = synthetic_runs.write_run(tmp_path / "run", synthetic_runs.TINY)
    before = write_report(run).read_bytes()

    def full_disk(figure: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "png", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        write_report(run)
    assert (run / "report" / "index.html").read_bytes() == before
    assert not list(run.glob(".report-*"))


@pytest.mark.usefixtures("quick")
def test_new_page_replaces_all_of_the_earlier_one(tmp_path: Path) -> None:
    run = synthetic_runs.write_run(tmp_path / "run", synthetic_runs.TINY)
    synthetic_runs.add_samples(run, synthetic_runs.TINY, count=1)
    write_report(run)
    assert (run / "report" / "sample-0.jpg").exists()
    next((run / "samples").glob("*.json")).unlink()
    write_report(run)
    assert not (run / "report" / "sample-0.jpg").exists()
    assert not list(run.glob(".report-*"))
