"""The demo site in Debian's Chromium: every view, its controls, the keyboard, accessibility, hostile strings."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from perfsuite.dashboard import SCRIPTS, assets_folder, build_site, read_runs, serving
from perfsuite.report.json import summary_json
from perfsuite.report.site import site_files
from perfsuite.results import load_run
from tests.demo_site import FIRST_BAD_NIGHT, INVALID_NIGHT, SWEEP, copy_runs, hostile, unpack
from tests.system import LEFT_OUT, which

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = which("chromium")
pytestmark = [
    pytest.mark.timeout(240),  # the first test builds the site of 62 runs
    pytest.mark.skipif(CHROMIUM is None, reason=f"needs Debian's chromium{LEFT_OUT}"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="needs playwright (dependency group dev)"),
]
VIEWS = ("overview", "pareto", "compare", "trend", "timeline", "run", "nights")
CHARTS = {"pareto", "trend", "timeline", "run"}


@dataclass
class Seen:
    """What a page did besides being shown."""

    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def site(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of the demo: all runs in the histories, the newest sixteen with a page."""
    out = tmp_path_factory.mktemp("site")
    assert build_site(demo, out, num_details=16).problems == ()
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def page(browser: Browser, seen: Seen) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True, bypass_csp=True)
    page = context.new_page()
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("console", lambda message: seen.messages.append(message.text))
    page.on("pageerror", lambda error: seen.messages.append(str(error)))
    yield page
    context.close()


def show(page: Page, base: str, view: str, query: str = "") -> None:
    """Open a view and wait until it is drawn."""
    page.goto("about:blank")
    page.goto(f"{base}#/{view}{query}")
    page.wait_for_selector(f'#view[data-view="{view}"]', state="attached")
    if view in CHARTS and page.locator(".plot").count():
        page.wait_for_selector(".plot[data-drawn]")


def choose(page: Page, control: str, value: str) -> None:
    """Change a control and wait until the view is drawn again."""
    turn = page.get_attribute("#view", "data-turn")
    page.select_option(f"#control-{control}", value)
    page.wait_for_selector(f'#view:not([data-turn="{turn}"])', state="attached")


def url_of(site: Path) -> str:
    return (site / "index.html").as_uri()


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_opens_from_a_folder_without_error_or_foreign_request(
    browser: Browser, page: Page, seen: Seen, site: Path, view: str
) -> None:
    show(page, url_of(site), view)
    assert page.locator("#view").inner_text().strip()
    assert "cannot be shown" not in page.inner_text("#view")
    assert page.locator("#view .plot canvas").count() >= (1 if view in CHARTS else 0)
    assert seen.messages == []
    own = site.as_uri()
    assert [url for url in seen.requests if not url.startswith((own, "data:", "blob:"))] == []
    assert all("/data/runs/" not in url for url in seen.requests) or view in ("timeline", "run")


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Page, site: Path, view: str, theme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme=theme)
    show(page, url_of(site), view)
    found = Axe().run(page).response["violations"]
    bad = [(row["id"], row["nodes"][0]["html"][:120]) for row in found if row["impact"] in ("serious", "critical")]
    assert bad == []


def test_the_policy_of_the_page_lets_its_own_scripts_run(browser: Browser, site: Path, seen: Seen) -> None:
    context = browser.new_context()  # with the policy, which the tests of axe go around
    page = context.new_page()
    page.on("console", lambda message: seen.messages.append(message.text))
    show(page, url_of(site), "pareto")
    assert seen.messages == []
    context.close()


def test_the_planted_regression_is_on_the_first_page_with_date_and_size(page: Page, site: Path) -> None:
    show(page, url_of(site), "overview")
    first = page.locator(".inbox > li").first.inner_text()
    assert "2026-10-31" in first
    size = re.search(r"−(\d+\.\d) %", first)
    assert size is not None and 5.0 < float(size[1]) < 7.0
    assert "engine_version" in first
    assert "NEW" in first and "1 new" in page.inner_text("#inbox-head")
    assert f"perfsuite annotate {FIRST_BAD_NIGHT}" in page.inner_text(".inbox .command")
    page.locator(".inbox a").first.click()
    page.wait_for_selector('#view[data-view="trend"]', state="attached")
    assert "2026-10-31" in page.inner_text("#view")


def test_a_command_of_the_inbox_is_copied(browser: Browser, site: Path) -> None:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    show(page, url_of(site), "overview")
    page.get_by_role("button", name="Copy").first.click()
    page.get_by_role("button", name="Copied").wait_for()
    text = page.evaluate("navigator.clipboard.readText()")
    assert text == f"perfsuite annotate {FIRST_BAD_NIGHT} 'why' --explained"
    context.close()


def test_the_trend_at_a_fixed_interactivity_has_the_change_point_and_says_how_it_was_read(
    page: Page, site: Path
) -> None:
    show(page, url_of(site), "trend", "?subject=vllm-nvfp4")
    options = page.locator("#control-load option")
    fixed = [value for value in options.evaluate_all("all => all.map(each => each.value)") if "tok/s/user" in value]
    assert len(fixed) == 3
    choose(page, "load", fixed[0])
    text = page.inner_text("#view")
    assert f"at {fixed[0]}" in page.inner_text("figcaption")
    assert "2026-10-31" in text and "nothing is extrapolated" in text
    size = re.search(r"change point −(\d+\.\d) %", text)
    assert size is not None and 15 < float(size[1]) < 20  # the curve is steep: more is lost than at one concurrency


def test_a_night_that_does_not_reach_the_operating_point_is_told_and_its_line_stops(
    page: Page, site: Path, tmp_path: Path
) -> None:
    out = tmp_path / "site"
    shutil.copytree(site, out)
    (path,) = (out / "data").glob("trend-*-output_tps_per_gpu.js")
    head, _, rest = path.read_text().partition(",")
    data = json.loads(rest.removesuffix(");\n"))
    series = next(each for each in data["series"] if each["unreached"] is not None)
    before, after = series["points"][4:6]
    between = (before["utc_ns"] + after["utc_ns"]) // 2
    series["unreached"].append({"run_id": "one", "utc_ns": between, "why": "its curve ends before"})
    path.write_text(f"{head},{json.dumps(data)});\n")
    query = f"?subject={series['arm']}&load={series['load_point']}"
    show(page, url_of(out), "trend", query)
    assert "no value: its curve ends before" in page.inner_text("#view")
    line = page.evaluate("(series) => PS.withGaps(series.points, series.unreached)", series)
    assert [value for _, value in line[4:7]] == [before["value"], None, after["value"]]


def test_rare_samples_are_joined_and_a_server_that_is_away_is_a_gap(page: Page, site: Path) -> None:
    show(page, url_of(site), "timeline")
    times = [0.25 * k for k in range(41)]
    values = [float(k) if k in (0, 4, 8, 32, 36) else None for k in range(41)]
    joined = page.evaluate("([times, values]) => PS.joined(times, values, 0.25)", [times, values])
    assert joined == [[0, 0], [1, 4], [2, 8], [5, None], [8, 32], [9, 36]]
    assert None not in [value for _, value in page.evaluate("PS.joined([0, 8, 16], [1, 2, 3], 8)")]


def test_a_kernel_profile_is_on_the_page_of_its_run_and_of_no_other(page: Page, seen: Seen, site: Path) -> None:
    show(page, url_of(site), "run", f"?run={SWEEP}")
    section = page.locator('section[aria-labelledby="kernels"]')
    assert section.locator("figure").count() == 6  # two phases: the arms together, then each
    assert section.locator(".plot[data-drawn] canvas").count() == 6
    assert "of 1.820 ms saved per decode step" in section.inner_text()
    figure = section.locator("figure").last
    figure.locator("summary").click()
    figure.locator("table tbody tr").first.wait_for()
    assert "fixture_grouped_gemm_up" in figure.locator("table").inner_text()
    show(page, url_of(site), "run", f"?run={INVALID_NIGHT}")
    assert section.count() == 0
    assert seen.messages == []


def test_the_first_page_says_the_regression_without_scripts(browser: Browser, site: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(url_of(site))
    assert "2026-10-31" in page.inner_text("body")
    context.close()


def test_controls_change_the_url_and_the_url_brings_the_state_back(page: Page, site: Path) -> None:
    show(page, url_of(site), "pareto")
    choose(page, "model", "deepseek-v3.2")
    choose(page, "y", "watt")
    choose(page, "x", "ttft")
    assert "model=deepseek-v3.2" in page.url and "y=watt" in page.url and "x=ttft" in page.url
    shared = page.url
    page.goto("about:blank")
    page.goto(shared)
    page.wait_for_selector(".plot[data-drawn]")
    assert page.input_value("#control-y") == "watt"
    assert "per W" in page.inner_text("figcaption")


def test_emulated_runs_are_marked_and_measured_ones_are_not_beside_them_unasked(page: Page, site: Path) -> None:
    show(page, url_of(site), "pareto")
    assert page.input_value("#control-origin") == "emulated"
    assert "EMULATED" in page.inner_text("figcaption")
    choose(page, "origin", "measured")
    assert page.locator(".plot").count() == 0
    assert "No measured run" in page.inner_text("#view")


def test_measured_and_emulated_share_an_axis_only_when_asked(page: Page, demo: Path, tmp_path: Path) -> None:
    runs, _ = read_runs(demo, 0)
    text = json.dumps(next(r for r in runs if r.run_id == SWEEP).answer).replace(
        '"emulated": true', '"emulated": false'
    )
    write_site(tmp_path, [runs[-1], changed(runs, text)])
    show(page, url_of(tmp_path), "pareto", "?model=deepseek-v4-flash")
    assert page.input_value("#control-origin") == "measured"
    assert "EMULATED" not in page.inner_text("figcaption")
    choose(page, "origin", "both")
    assert page.locator(".plot").count() == 1


def changed(runs: list[Any], answer: str) -> Any:
    """The sweep as if it had been measured on another engine."""
    from dataclasses import replace

    run = next(each for each in runs if each.run_id == SWEEP)
    scenario = json.loads(json.dumps(run.scenario).replace('"engine": "emulated"', '"engine": "vllm"'))
    return replace(run, answer=json.loads(answer), scenario=scenario, manifest={**run.manifest, "emulated": False})


def write_site(out: Path, runs: list[Any]) -> None:
    template = (assets_folder() / "site" / "index.html").read_text(encoding="utf-8")
    for name in ("site", "vendor"):
        shutil.copytree(assets_folder() / name, out / name)
    (out / "data").mkdir()
    for name, text in site_files(runs, [], template=template, scripts=SCRIPTS, now_utc_ns=0, version="1").items():
        (out / name).write_text(text)


def test_every_chart_has_its_table_and_its_downloads(page: Page, site: Path, tmp_path: Path) -> None:
    for view in sorted(CHARTS):
        show(page, url_of(site), view)
        figure = page.locator("figure").first
        assert figure.locator(".plot").get_attribute("aria-label")
        assert figure.locator("table").count() == 0  # made when it is asked for
        figure.locator("summary").first.click()
        figure.locator("table tbody tr").first.wait_for()
        with page.expect_download() as download:
            figure.get_by_role("button", name="CSV").click()
        assert download.value.path().read_text().count("\n") > 1
        with page.expect_download() as download:
            figure.get_by_role("button", name="PNG").click()
        assert download.value.path().read_bytes().startswith(b"\x89PNG")
        assert "EMULATED" in download.value.suggested_filename


def test_numbers_of_the_run_page_are_those_of_show_json(page: Page, site: Path, demo: Path) -> None:
    data, summary = load_run(demo, SWEEP)
    shown = json.loads(json.dumps(summary_json(summary, run=data.manifest)))
    for metric in ("output_tps_per_gpu", "tpot_p50_s", "j_per_output_token"):
        show(page, url_of(site), "run", f"?run={SWEEP}&metric={metric}")
        cells = page.locator("[data-value]")
        found = {
            int(cells.nth(k).get_attribute("data-trial") or -1): float(
                cells.nth(k).get_attribute("data-value") or "nan"
            )
            for k in range(0, cells.count(), 7)
        }
        assert found
        assert found == {t["trial"]: t["metrics"][metric] for t in shown["trials"] if t["trial"] in found}


def test_an_invalid_arm_and_a_gap_are_shown(page: Page, site: Path) -> None:
    show(page, url_of(site), "compare", f"?run={INVALID_NIGHT}")
    assert "No verdict." in page.inner_text("#view")
    assert "✗ 1 invalid" in page.inner_text("#view")
    show(page, url_of(site), "nights")
    assert page.locator(".night.missing").count() == 2 + 1  # and the one of the legend


def test_an_older_run_without_a_page_is_listed_without_a_link(page: Page, site: Path) -> None:
    show(page, url_of(site), "overview", "?runs=all")
    row = page.locator("tr", has_text=FIRST_BAD_NIGHT)
    assert row.count() == 1
    assert row.locator("a").count() == 0


def test_the_keyboard_reaches_everything(page: Page, site: Path) -> None:
    show(page, url_of(site), "pareto")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    names = []
    for _ in range(20):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert {"theme", "control-model", "control-y", "CSV", "PNG"} <= set(names)
    page.focus("#control-y")
    page.keyboard.press("ArrowDown")
    page.wait_for_url("**y=total*")
    page.wait_for_timeout(100)
    assert page.evaluate("document.activeElement.id") == "control-y"


def test_the_theme_can_be_changed_and_stays(page: Page, site: Path) -> None:
    show(page, url_of(site), "pareto")
    assert page.get_attribute("html", "data-theme") == "light"
    page.click("#theme")
    assert page.get_attribute("html", "data-theme") == "dark"
    show(page, url_of(site), "nights")
    assert page.get_attribute("html", "data-theme") == "dark"


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_is_wider_than_a_phone(page: Page, site: Path, view: str) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    show(page, url_of(site), view)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_every_view_of_an_empty_site_says_what_is_missing(page: Page, seen: Seen, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    build_site(tmp_path / "results", tmp_path / "site", catalog="none")
    for view in VIEWS:
        show(page, url_of(tmp_path / "site"), view)
        assert page.locator("#view .empty").count() > 0
    assert seen.messages == []


def test_hostile_strings_stay_text(page: Page, seen: Seen, site: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    shutil.copytree(site, out)
    for path in (out / "data").rglob("*.js"):
        head, _, rest = path.read_text().partition(",")
        path.write_text(f"{head},{json.dumps(hostile(json.loads(rest.removesuffix(');' + chr(10)))))});\n")
    page.on("dialog", lambda dialog: seen.messages.append(f"dialog {dialog.message}"))
    for view in VIEWS:
        show(page, url_of(out), view)
        assert page.locator("#view img, #view script").count() == 0
        assert "<img src=x" in page.inner_text("#view")
    assert seen.messages == []


def test_a_served_site_works_too(page: Page, seen: Seen, demo: Path, tmp_path: Path) -> None:
    results = copy_runs(demo, tmp_path / "results", SWEEP)
    with serving(results, tmp_path / "site", catalog="none") as url:
        for view in ("overview", "pareto", "run"):
            show(page, url, view)
            assert page.inner_text("#view").strip()
        assert seen.messages == []
        assert all(each.startswith((url, "about:", "data:")) for each in seen.requests)
