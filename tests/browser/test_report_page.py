"""The report in a real browser: it draws, filters, sorts and speaks, on a desktop and on a phone, by day and by night.

The pictures of docs/report.md are made here: `python -m pytest tests/browser --pictures` writes them anew.
"""

from __future__ import annotations

import io
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import DESKTOP, PHONE, Opened
from PIL import Image
from playwright.sync_api import Browser

from jobs.core.files import read_json, write_json
from jobs.core.rundir import SweepDir
from jobs.results.report import write_report

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "tests/fixtures/sweep_vllm_cpu"

SCREENS = list(itertools.product([DESKTOP, PHONE], ["light", "dark"]))

Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the recorded sweep."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    shutil.copytree(RECORDED, folder)
    return write_report(SweepDir(folder))


@pytest.fixture
def opened(chromium: Browser, report: Path) -> Iterator[Open]:
    """Open the page as one likes; at the end it must have complained of nothing and asked no network."""
    pages: list[Opened] = []

    def make(**context: object) -> Opened:
        pages.append(Opened(chromium, report, **context))
        return pages[-1]

    yield make
    for one in pages:
        assert one.complaints == []
        assert [url for url in one.asked if not url.startswith(("file:", "data:", "blob:"))] == []
        one.close()


def picture(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"), dtype=float)


@pytest.mark.parametrize(("screen", "scheme"), SCREENS)
def test_everything_is_drawn_in_the_colours_and_the_width_of_the_screen(
    opened: Open, screen: dict[str, int], scheme: str
) -> None:
    page = opened(viewport=screen, color_scheme=scheme).page
    plots = page.locator(".plot")
    names = {plot.get_attribute("id") for plot in plots.all()}
    assert {"plot-frontier", "plot-length-ttft_ms_p50", "plot-objective", "plot-time", "plot-balance"} <= names
    for plot in plots.all():
        assert plot.locator("path.js-line, .point path, path.point, .bars .point").count() > 0, plot.get_attribute("id")
        shape = plot.bounding_box()
        assert shape is not None
        assert 200 < shape["width"] <= screen["width"]
        assert picture(plot.screenshot()).std() > 5, "a blank picture"
    # Nothing sticks out of the screen but what scrolls inside its own box.
    assert page.evaluate("document.documentElement.scrollWidth") <= screen["width"]
    whole = picture(page.screenshot(full_page=True))
    assert whole.shape[1] == screen["width"]
    assert whole.shape[0] > 2 * screen["height"]
    assert (np.median(whole) > 200) == (scheme == "light")
    assert whole.std() > 10
    for heading in page.locator("h2").all():
        assert heading.is_visible()


def test_the_filter_and_the_sorting(opened: Open) -> None:
    page = opened(viewport=DESKTOP).page
    rows = page.locator("#rows tbody tr")
    assert rows.count() == 15
    page.fill("#filter", "max_model_len=8192 input_tokens=512")
    assert rows.count() == 1
    assert page.locator("#row-count").inner_text() == "1 of 15 rows"
    page.fill("#filter", "no such word")
    assert rows.count() == 0
    page.fill("#filter", "")
    page.select_option("#validity", "false")
    assert rows.count() == 5
    assert "max_model_len" in rows.first.inner_text()
    page.select_option("#validity", "true")
    assert rows.count() == 10
    column = page.locator('button[data-column="output_tok_per_s"]')
    place = page.eval_on_selector_all("#rows thead button", "all => all.map(one => one.dataset.column)").index(
        "output_tok_per_s"
    )

    def figures() -> list[float]:
        return [float(row.locator("td").nth(place).inner_text().split()[0]) for row in rows.all()]

    column.click()
    up = figures()
    assert up == sorted(up)
    column.click()
    assert figures() == up[::-1]
    assert page.locator("td.best").count() > 0
    heights = [row.bounding_box() for row in rows.all()]
    assert all(shape is not None and shape["height"] < 60 for shape in heights), "a long reason keeps its row low"
    before = page.locator("#rows thead th").count()
    page.check("#all-columns")
    assert page.locator("#rows thead th").count() > before + 20


def test_unknown_values_come_last_whichever_way_it_is_sorted(opened: Open) -> None:
    page = opened(viewport=DESKTOP).page
    for _ in range(2):
        page.locator('button[data-column="output_tok_per_s"]').click()
        assert page.locator("#rows tbody tr").last.get_attribute("class") == "invalid"


def test_both_languages(opened: Open) -> None:
    one = opened(viewport=DESKTOP)
    page = one.page
    assert page.locator("html").get_attribute("lang") == "en"
    english = page.locator("#sections").inner_text()
    page.click("#language")
    one.drawn()
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    chinese = page.locator("#sections").inner_text()
    assert [text.strip() for text in page.locator("h2").all_inner_texts()][:2] == ["结论", "计划与实际"]
    assert chinese.count("{") == english.count("{"), "no place of a sentence was left open"
    assert "超过模型本身支持的长度" in chinese and "too few for a p99" not in chinese, (
        "reasons and notes are told in Chinese too"
    )
    assert opened(locale="zh-CN").page.locator("h2").first.inner_text() == "结论"
    page.click("#language")
    one.drawn()
    assert page.locator("#sections").inner_text() == english


def test_the_first_paragraph_says_who_won_and_whether_to_believe_it(opened: Open) -> None:
    text = opened(viewport=PHONE).page.locator("#verdict").inner_text()
    assert "won" in text or "ahead" in text
    assert "Take it with care" in text
    assert "5 of 15 rows are not valid" in text


def test_another_objective_is_drawn_at_once(opened: Open) -> None:
    one = opened(viewport=DESKTOP)
    points = "document.getElementById('plot-objective').data.filter(trace => trace.mode.includes('markers'))"
    heights = f"{points}.flatMap(trace => Array.from(trace.y))"
    assert None in one.page.evaluate(heights), "of so few requests nobody knows"
    one.page.fill("#limit-ttft", "1")
    one.page.locator("#limit-ttft").press("Enter")
    one.drawn()
    assert set(one.page.evaluate(heights)) == {0}
    one.page.select_option("#length-key", "parallel.max_model_len")
    one.drawn()
    assert "curve needs at least 4" in one.page.locator("#lengths").inner_text()
    one.page.select_option("#latency", "tpot_ms_p50")
    one.drawn()


def test_rows_of_other_work_do_not_beat_one_another(opened: Open) -> None:
    page = opened(viewport=DESKTOP).page
    works = page.evaluate("new Set(DATA.rows.filter(row => row.valid).map(row => row._work)).size")
    rings = page.evaluate("frontier(DATA.rows.filter(row => row.valid), 'ttft_ms_p50').map(row => row._work)")
    assert works > 1
    assert len(set(rings)) == works, "each kind of work has its best"
    colours = page.evaluate(
        "document.getElementById('plot-frontier').data.filter(one => one.line).map(one => one.line.color)"
    )
    settings = page.evaluate("new Set(DATA.rows.filter(row => row.valid).map(row => row._setting)).size")
    assert len(set(colours)) == settings


def test_an_absent_latency_has_no_star_and_a_note_has_a_mark(opened: Open) -> None:
    page = opened(viewport=DESKTOP).page
    best = "DATA.rows.filter(row => isBest(row, 'tpot_ms_p50'))"
    assert page.evaluate(f"{best}.length") > 0
    assert page.evaluate(f"{{ const [row] = {best}; row.tpot_ms_p50 = 0; isBest(row, 'tpot_ms_p50'); }}") is False
    page.evaluate("{ DATA.rows.find(row => row.valid).notes = 'a word'; render(); }")
    assert "yes*" in page.locator("#rows").inner_text()
    assert "a word" in page.locator("#rows").inner_text()


def test_a_turn_to_night_redraws(opened: Open) -> None:
    one = opened(viewport=DESKTOP, color_scheme="light")
    colour = "document.querySelector('#plot-time').layout.font.color"
    day = one.page.evaluate(colour)
    one.page.emulate_media(color_scheme="dark")
    one.page.wait_for_function(f"() => {colour} !== {day!r}")
    one.drawn()


def test_the_pictures_of_the_documentation(opened: Open, pytestconfig: pytest.Config, tmp_path: Path) -> None:
    """Taken on every run, so that they can be; kept with --pictures."""
    folder = ROOT / "docs/img" if pytestconfig.getoption("--pictures", default=False) else tmp_path
    folder.mkdir(exist_ok=True)
    desk = opened(viewport=DESKTOP, color_scheme="light").page
    phone = opened(viewport=PHONE, color_scheme="dark", locale="zh-CN").page
    shots = {
        "report_summary.png": lambda path: desk.screenshot(path=path),
        "report_table.png": lambda path: desk.locator("#table").screenshot(path=path),
        "report_lengths.png": lambda path: desk.locator("#lengths").screenshot(path=path),
        "report_phone.png": lambda path: phone.screenshot(path=path),
    }
    for name, shoot in shots.items():
        shoot(folder / name)
        # 64 colours are enough for a page, and keep the repository small.
        with Image.open(folder / name) as whole:
            whole.convert("RGB").quantize(64).save(folder / name, optimize=True)
        assert picture((folder / name).read_bytes()).std() > 5
        assert (folder / name).stat().st_size < 120_000, name


def _without_rows(folder: Path) -> None:
    for path in folder.rglob("row.json"):
        path.unlink()


def test_what_a_search_has_found_comes_first_and_its_command_can_be_copied(chromium: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    shutil.copytree(RECORDED, folder)
    figures = {"output_tok_per_s": 500.0, "ttft_ms_mean": 900.0, "tpot_ms_mean": 40.0, "starts": 0, "windows": 0}
    best = {"name": "seqs=16", "tied": "seqs=64", "value": 500.0, "low": 490.0, "high": 510.0, "overrides": ["a=b c"]}
    settings = [figures | {"name": name, "measured": name == "seqs=16", "out": ""} for name in ("seqs=16", "seqs=64")]
    found = {"goal": "output_tok_per_s", "answer": best, "settings": settings, "ruled_out": {"seqs=999": "memory: no"}}
    more = {"node_hours": 10.0, "settings": ["seqs=64"], "gain": 0.004}
    cost = {
        "node_hours": 3.2,
        "budget_node_hours": 24.0,
        "queue_hours": 0.5,
        "starts": 2,
        "why": "it is enough",
        "over": True,
        "next": more,
    }
    write_json(SweepDir(folder).answer, found | cost)
    row = next(path for path in sorted(folder.rglob("row.json")) if read_json(path)["valid"])
    write_json(row, read_json(row) | {"forecast_output_tok_per_s": 1000.0, "unexpected": "memory would explain it"})
    one = Opened(chromium, write_report(SweepDir(folder)), viewport=PHONE)
    first = one.page.locator("section").first.inner_text()
    assert "python -m jobs serve 'a=b c'" in first and "seqs=999: memory: no" in first and "3.2 of 24" in first
    plan = one.page.locator("#plan").inner_text()
    assert "/ 1000 (" in plan and "memory would explain it" in plan
    one.page.locator("#copy").click()
    one.page.wait_for_function("() => document.getElementById('copy').textContent === 'Copied'")
    assert one.complaints == []
    one.close()


def _without_services(folder: Path) -> None:
    shutil.rmtree(folder / "services")


def _half_simulated(folder: Path) -> None:
    for path in sorted(folder.rglob("row.json"))[::2]:
        path.write_text(path.read_text().replace('"vllm_cpu"', '"simulator"'))


@pytest.mark.parametrize("change", [_without_rows, _without_services, _half_simulated])
@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_a_poor_sweep_has_a_page_too(
    chromium: Browser, tmp_path: Path, change: Callable[[Path], None], locale: str
) -> None:
    folder = tmp_path / "poor"
    shutil.copytree(RECORDED, folder)
    change(folder)
    one = Opened(chromium, write_report(SweepDir(folder)), viewport=PHONE, locale=locale)
    assert one.complaints == []
    text = one.page.locator("#sections").inner_text()
    assert "undefined" not in text
    assert "NaN" not in text
    assert one.page.locator("section").count() == 10
    if change is _half_simulated:
        names = one.page.evaluate("document.getElementById('plot-frontier').data.map(trace => trace.name)")
        assert any("(simulator)" in name for name in names)
        assert any("max_model_len" in name and "(simulator)" not in name for name in names)
    one.close()


def test_words_of_others_are_no_links_in_a_plot(chromium: Browser, tmp_path: Path) -> None:
    """Plotly makes links, bold and colours of what looks like HTML: in its legends, axes and at a point."""
    evil, folder = '<a href="https://x.example/">see here</a>&lt;b&gt;', tmp_path / "evil"
    shutil.copytree(RECORDED, folder)
    sweep = SweepDir(folder)
    plan = read_json(sweep.plan)
    key = plan["swept"][0]
    for point in plan["points"]:
        point["values"][key] = f"{point['values'][key]} {evil}"
    write_json(sweep.plan, plan)
    for path in sorted(folder.rglob("row.json")):
        write_json(path, read_json(path) | {"engine": evil})
    one = Opened(chromium, write_report(sweep), viewport=DESKTOP)
    texts = one.page.evaluate("[...document.querySelectorAll('.plot text')].map(one => one.textContent).join('|')")
    assert '<a href="https://x.example/">see here</a>&lt;b&gt;' in texts, "it is shown as it is"
    assert one.page.locator(".plot a").count() == 0
    assert one.complaints == []
    one.close()
