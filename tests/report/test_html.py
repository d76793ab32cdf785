"""A curve's page in a real browser: on a laptop, a phone and paper, in the light and the dark scheme."""

import base64
import copy
import csv
import io
import itertools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape

import synthetic_insights
import synthetic_reports
from browser import MISSING, Tab, browsing, chromium
from orchestrator.report.compared_sweeps import Beside, FieldDifference
from orchestrator.report.curve_report import CurveReport
from orchestrator.report.curve_types import Series
from orchestrator.report.downloads import MOST_BYTES, downloads
from orchestrator.report.html import page
from orchestrator.report.published import PublishedResult
from sim_workers.rollout.rollout_video import mp4
from synthetic_curves import several, with_a_baseline
from synthetic_errors import held_out

HOSTILE = (
    """<script>window.broken = 1</script>"><img src=x onerror="window.broken=1">'{{ 7*7 }}</style></pre>"""
)
SWEEP = "name: lift-and-can\nmlflow: https://reader:hunter2@mlflow.example.org\n"


BESIDE = Beside(
    ("lift-video", "lift-no-noise"),
    (FieldDifference("train.steps", (100, None)), FieldDifference("policy.preset", ("tiny", "svd-256"))),
    (PublishedResult(name="Video Policy", source="arXiv:2508.00795, table 1", successes=63, episodes=100),),
    ("Published results are of other scenes and seeds: compare rates with care, not episodes.",),
)
"""What two sweeps differ in, and a published result."""


@pytest.fixture(scope="module")
def film() -> bytes:
    """Return a film of three columns and half a second that ends in red."""
    return mp4([np.full((274, 776, 3), (40 * n, 20, 20), np.uint8) for n in range(6)], fps=10)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, film: bytes) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    rich = synthetic_reports.rich()
    texts = {
        "rich": page(rich, synthetic_reports.films(film), SWEEP, scenes=synthetic_reports.scenes(rich)),
        "bare": page(synthetic_reports.bare(), [], ""),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.fixture(scope="module")
def all_pages(pages: dict[str, Path]) -> dict[str, Path]:
    """Return these pages and those of held-out episodes, of several sweeps, and of many lines."""
    texts = {
        "held out": held_out().page(),
        "compared": page(synthetic_reports.bare(), [], SWEEP, beside=BESIDE),
        "five lines": page(five_lines(), [], SWEEP),
    }
    folder = pages["rich"].parent
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return pages | {name: folder / f"{name}.html" for name in texts}


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    assert chromium(), MISSING
    with browsing(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def hostile() -> CurveReport:
    """Return the rich curve with markup in every name that a user or a tool chooses."""
    report = synthetic_reports.rich()
    assert report.video
    return replace(
        report,
        name=HOSTILE,
        protocol=HOSTILE,
        caption=HOSTILE,
        answer=(HOSTILE, *report.answer[1:]),
        lines=tuple(
            replace(line, label=HOSTILE, reach=(replace(line.reach[0], text=HOSTILE), *line.reach[1:]))
            for line in report.lines
        ),
        points=tuple(
            replace(
                row,
                point=replace(row.point, by_task=dict.fromkeys((HOSTILE, "Lift"), row.point.by_task["Lift"])),
            )
            for row in report.points
        ),
        arms=tuple(replace(arm, arm=HOSTILE) for arm in report.arms),
        comparisons=tuple(replace(comparison, first=HOSTILE) for comparison in report.comparisons),
        video=replace(
            report.video,
            measure=HOSTILE,
            text=HOSTILE,
            points=tuple(replace(point, arm=HOSTILE) for point in report.video.points),
            episodes=tuple(replace(episode, arm=HOSTILE) for episode in report.video.episodes),
        ),
        where=synthetic_insights.where(report.lines[0].series, HOSTILE),
        demonstrations=synthetic_insights.demonstrations(HOSTILE),
        protocol_facts=((HOSTILE, HOSTILE),),
        provenance=((HOSTILE, HOSTILE),),
    )


# -- in a browser


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["rich", "bare"])
def test_page_makes_no_request_and_logs_no_error(tab: Tab, pages: dict[str, Path], kind: str) -> None:
    tab.open(pages[kind])
    assert [url for url in tab.requests if not url.startswith("data:")] == [pages[kind].as_uri()]
    assert tab.complaints == []
    text = pages[kind].read_text()
    addresses = re.findall(
        r"""(?:src|href|poster|action|data)\s*=\s*["']?([^"'>\s]*)|url\(([^)]*)\)|(@import|<script|<link[^>]*stylesheet)""",
        text,
    )
    assert {next(filter(None, address), "")[:5] for address in addresses} <= {
        "data:",
        *(f"#{id}"[:5] for id in re.findall(r'id="([^"]+)"', text)),
    }


@pytest.mark.browser
def test_browser_records_requests_and_page_policy_blocks_injected_script(
    tab: Tab, pages: dict[str, Path], tmp_path: Path
) -> None:
    """The browser of these tests records requests and errors, and the page's content security policy blocks
    injected script.
    """
    open_page = tmp_path / "asks.html"
    open_page.write_text('<img src="https://example.org/x.png"><script>console.error("oh")</script>')
    tab.open(open_page)
    assert "https://example.org/x.png" in tab.requests
    assert any("oh" in complaint for complaint in tab.complaints)
    closed = tmp_path / "slips.html"
    closed.write_text(
        pages["bare"]
        .read_text()
        .replace("<main>", '<main><script>window.broken = 1</script><img src="https://example.org/x.png">')
    )
    tab.open(closed)
    assert tab.ask("window.broken === undefined")
    assert any("Content Security Policy" in complaint for complaint in tab.complaints)


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("kind", ["rich", "bare", "hostile"])
def test_page_is_no_wider_than_the_window_except_scrolling_tables(
    tab: Tab, pages: dict[str, Path], tmp_path: Path, kind: str, width: int
) -> None:
    path = pages.get(kind, tmp_path / "hostile.html")
    if kind == "hostile":
        path.write_text(page(hostile(), [], HOSTILE))
    tab.open(path, width, 740)
    assert tab.ask("innerWidth") == width
    assert tab.ask("document.documentElement.scrollWidth") <= width
    wide = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll table, .scroll pre, .scroll .scenes, .unseen') && e.getClientRects().length
              && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.outerHTML.slice(0, 200))"""
    assert tab.ask(wide) == []
    if (kind, width) == ("rich", 360):
        assert tab.ask(
            "[...document.querySelectorAll('.scroll')].some(e => e.scrollWidth > e.clientWidth &&"
            " getComputedStyle(e).overflowX == 'auto')"
        )


@pytest.mark.browser
@pytest.mark.parametrize(("width", "height"), [(1280, 720), (360, 740)])
def test_page_first_screen_shows_answer_and_curve(
    tab: Tab, pages: dict[str, Path], width: int, height: int
) -> None:
    tab.open(pages["rich"], width, height)
    assert tab.ask("document.querySelector('h1').textContent") == synthetic_reports.rich().answer[0]
    shown = (
        "[...document.querySelectorAll('main .plot')].filter(e =>"
        " e.getClientRects().length)[0].getBoundingClientRect()"
    )
    assert tab.ask(f"{shown}.bottom") <= height
    assert tab.ask(f"{shown}.width") > 0.5 * width


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "bright"), [("light", True), ("dark", False)])
@pytest.mark.parametrize("kind", ["rich", "bare"])
def test_page_text_has_contrast_in_light_and_dark_scheme(
    tab: Tab, pages: dict[str, Path], kind: str, scheme: str, bright: bool
) -> None:
    tab.open(pages[kind], scheme=scheme)
    texts = tab.ask("""(() => {
        const opaque = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$/.test(c)) return c } }
        const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = []
        while (walker.nextNode()) {
            const e = walker.currentNode.parentElement, style = getComputedStyle(e)
            if (!walker.currentNode.textContent.trim() || !e.getClientRects().length || e.closest('title, desc, style')) continue
            found.push([e.closest('svg') ? style.fill : style.color, opaque(e), walker.currentNode.textContent.trim().slice(0, 40)])
        }
        return found
    })()""")
    assert len(texts) > (200 if kind == "rich" else 30)
    assert (luminance(tab.ask("getComputedStyle(document.body).backgroundColor")) > 0.9) is bright
    assert [(text, colour, ground) for colour, ground, text in texts if contrast(colour, ground) < 4.5] == []
    marks = tab.ask(
        "[...document.querySelectorAll('.plot .line, .plot .whisker')].map(e => getComputedStyle(e).stroke)"
    )
    assert all(contrast(colour, tab_ground) >= 3 for colour in marks for tab_ground in {texts[0][1]})


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["rich", "bare"])
def test_page_is_accessible_to_screen_reader_and_keyboard(
    tab: Tab, pages: dict[str, Path], kind: str
) -> None:
    """Headings in order, tables with headers, drawings and films with text alternatives, all reachable by
    keyboard.
    """
    tab.open(pages[kind])
    levels = tab.ask("[...document.querySelectorAll('h1, h2, h3')].map(e => +e.tagName[1])")
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    nameless = """[...document.querySelectorAll('table')].filter(t => !t.caption || ![...t.querySelectorAll('thead th')].every(h => h.scope == 'col')
        || !t.querySelector('thead th') || ![...t.querySelectorAll('tbody tr')].every(r => r.querySelector('th[scope=row]'))).length"""
    assert tab.ask(nameless) == 0
    assert (
        tab.ask(
            "[...document.querySelectorAll('img')].filter(e => !e.alt).length +"
            " [...document.querySelectorAll('video:not([aria-label])')].length"
        )
        == 0
    )
    silent = """[...document.querySelectorAll('svg')].filter(e => e.getAttribute('aria-hidden') != 'true' && !(['img', 'group'].includes(e.getAttribute('role'))
        && e.querySelector(':scope > title').textContent && e.querySelector(':scope > desc').textContent)).length"""
    assert tab.ask(silent) == 0
    assert (
        tab.ask(
            "(ids => ids.length - new Set(ids).size)([...document.querySelectorAll('[id]')].map(e => e.id))"
        )
        == 0
    )
    assert (
        tab.ask(
            """[...document.querySelectorAll('[aria-labelledby], a[href^="#"]')].flatMap(e => (e.getAttribute('aria-labelledby')
        ?? e.getAttribute('href').slice(1)).split(' ')).filter(id => !document.getElementById(id))"""
        )
        == []
    )
    assert tab.ask(
        "[...document.querySelectorAll('.scroll')].every(e => e.tabIndex == 0 && e.getAttribute('aria-label')"
        " && e.role == 'region')"
    )
    for kind_of_event in ("rawKeyDown", "keyUp"):
        tab.send("Input.dispatchKeyEvent", type=kind_of_event, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert (
        tab.ask(
            "document.activeElement != document.body && getComputedStyle(document.activeElement).outlineStyle"
        )
        == "solid"
    )


@pytest.mark.browser
def test_page_films_play_from_embedded_data(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["rich"])
    played = tab.ask(
        """Promise.all([...document.querySelectorAll('video')].map(async v => {
        await v.play(); return [v.videoWidth, v.videoHeight, v.src.slice(0, 15), v.poster.slice(0, 16)] }))"""
    )
    assert played == [[776, 274, "data:video/mp4;", "data:image/jpeg;"]] * 4


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_in_print_is_white_with_films_as_pictures(tab: Tab, pages: dict[str, Path], scheme: str) -> None:
    tab.open(pages["rich"], 688, 1000, scheme)
    tab.ask("location.hash = 'whole'")
    assert sheets(tab.pdf()) > 1
    tab.send(
        "Emulation.setEmulatedMedia",
        media="print",
        features=[{"name": "prefers-color-scheme", "value": scheme}],
    )
    assert tab.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.ask(
        "[...document.querySelectorAll('video, nav')].every(e => getComputedStyle(e).display == 'none')"
    )
    assert (
        tab.ask(
            "[...document.querySelectorAll('.film img')].map(e => e.getClientRects().length &&"
            " e.naturalWidth)"
        )
        == [776] * 4
    )
    assert tab.ask(
        "[...document.querySelectorAll('.scroll')].every(e => e.scrollHeight <= e.clientHeight + 1)"
    )
    assert tab.ask("document.documentElement.scrollWidth") <= 688


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["rich", "bare", "held out", "compared", "five lines"])
def test_page_prints_answer_curve_and_table_on_one_sheet(
    tab: Tab, all_pages: dict[str, Path], kind: str
) -> None:
    tab.open(all_pages[kind], 1280)
    assert sheets(tab.pdf()) == 1
    tab.send("Emulation.setEmulatedMedia", media="print")
    printed = "e => e.getClientRects().length > 0"
    assert tab.ask(f"[...document.querySelectorAll('h1, main .plot')].filter({printed}).length") >= 2
    assert tab.ask(f"[...document.querySelectorAll('main table')].filter({printed}).length") >= 1


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_page_shows_a_value_where_the_pointer_or_the_keyboard_is(
    tab: Tab, pages: dict[str, Path], width: int
) -> None:
    """A point answers with its numbers, links to its row, and the label lies within the window."""
    tab.open(pages["rich"], width, 900)
    shown = """[...document.querySelectorAll('.callout')].filter(e => e.getClientRects().length
        && getComputedStyle(e).visibility == 'visible').map(e => [e.getBoundingClientRect().left, e.getBoundingClientRect().right,
        [...e.querySelectorAll('text')].map(t => t.textContent).join(' | ')])"""
    assert tab.ask(shown) == []
    hit = "[...document.querySelectorAll('a[href=\"#point-4\"] .hit')].filter(e => e.getClientRects().length)[0].getBoundingClientRect()"
    x, y = tab.ask(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({hit})")
    tab.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    ((left, right, words),) = tab.ask(shown)
    point = synthetic_reports.rich().points[3].point
    assert words.startswith(f"demos only, 300 demos | {point.successes}/{point.episodes} = ")
    assert 0 <= left < right <= width
    tab.send("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    for kind_of_event in ("rawKeyDown", "keyUp"):
        tab.send("Input.dispatchKeyEvent", type=kind_of_event, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert [words for *_, words in tab.ask(shown)] == [f"demos only, 10 demos | {_value(0)}"]
    tab.send(
        "Input.dispatchKeyEvent",
        type="keyDown",
        key="Enter",
        code="Enter",
        text="\r",
        windowsVirtualKeyCode=13,
    )
    assert tab.ask("location.hash") == "#point-1"
    assert tab.ask("document.querySelector('#point-1 td').textContent") == "10"


def _value(place: int) -> str:
    point = synthetic_reports.rich().points[place].point
    low, high = point.interval
    return f"{point.successes}/{point.episodes} = {point.success_rate:.2f} [{low:.2f}, {high:.2f}]"


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["rich", "bare", "held out", "compared"])
def test_page_has_no_violation_that_axe_finds(tab: Tab, all_pages: dict[str, Path], kind: str) -> None:
    """At 390, 1280 and 1920 px, in the light and the dark scheme, by all rules of axe-core."""
    engine, found = axe(), []
    for width, scheme in itertools.product((390, 1280, 1920), ("light", "dark")):
        tab.open(all_pages[kind], width, 900, scheme)
        tab.ask(engine)
        found += [
            (width, scheme, *violation)
            for violation in tab.ask(
                "axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.map(v =>"
                " [v.id, v.help, v.nodes.slice(0, 3).map(n => n.html.slice(0, 200))]))"
            )
        ]
    assert found == []


@pytest.mark.browser
def test_page_escapes_hostile_names(tab: Tab, tmp_path: Path, film: bytes) -> None:
    path = tmp_path / "hostile.html"
    named = [
        {**one, "arm": HOSTILE, "episode": HOSTILE, "caption": HOSTILE}
        for one in synthetic_reports.films(film)
    ]
    path.write_text(page(hostile(), named, HOSTILE), encoding="utf-8")  # type: ignore[arg-type]
    tab.open(path)
    assert tab.ask(
        "window.broken === undefined && document.scripts.length == 0 && !document.querySelector('[onerror],"
        " img[src=x]')"
    )
    assert tab.ask("document.querySelector('h1').textContent") == HOSTILE
    assert tab.ask("document.querySelector('pre').textContent") == HOSTILE
    assert tab.complaints == []


# -- its text


def test_page_carries_its_numbers_and_episodes_as_files_without_secrets() -> None:
    report = synthetic_reports.rich()
    grid = synthetic_reports.scenes(report)
    text = page(report, [], SWEEP, scenes=grid)
    files = {
        name: base64.b64decode(data).decode()
        for data, name in re.findall(r'href="data:[a-z/]+;base64,([^"]*)" download="([^"]+)"', text)
    }
    assert list(files) == ["lift-and-can.json", "lift-and-can-episodes.csv", "lift-and-can.yaml"]
    assert json.loads(files["lift-and-can.json"])["points"] == report.to_json()["points"]
    assert "hunter2" not in "".join(files.values())
    rows = list(csv.DictReader(io.StringIO(files["lift-and-can-episodes.csv"])))
    assert len(rows) == 2 * synthetic_reports.EPISODES
    wins = sum(int(row[report.arms[0].arm]) for row in rows)
    assert wins == sum(task.counts(0)[0] for task in grid.tasks)


def test_page_names_a_file_that_is_too_large_to_carry() -> None:
    (numbers, episodes) = downloads("a/b", {}, {"episodes": "x" * MOST_BYTES}, "")
    assert (numbers.name, bool(numbers.uri), bool(episodes.uri)) == ("a-b.json", True, False)
    assert episodes.kilobytes == 3000


def test_page_shows_every_count_with_denominator_and_interval(pages: dict[str, Path]) -> None:
    text = pages["rich"].read_text()
    report = synthetic_reports.rich()
    for row in (*(point.point for point in report.points), *report.arms):
        assert f">{row.successes}/{row.episodes}{'†' if row.early else ''}<" in text
        assert f">{row.interval.low:.2f} to {row.interval.high:.2f}<" in text
    assert "missing: 2" in text


def test_page_of_a_bare_curve_names_what_is_missing(pages: dict[str, Path]) -> None:
    text = pages["bare"].read_text()
    for sentence in (
        "Nothing is compared",
        "No film of a rollout is kept",
        "What this sweep cost is not known",
    ):
        assert sentence in text
    assert "Success against cost" not in text
    assert not re.search(r">\s*(None|nan|inf|Undefined)\s*<", text)


def test_page_of_lines_with_other_demo_counts_shows_a_dash() -> None:
    report = synthetic_reports.rich()
    text = page(replace(report, points=report.points[:-1]), [], "")
    counts = text[text.index("Successes out of episodes, by demos") :].partition("</table>")[0]
    assert counts.count('<td class="number">–</td>') == 1  # noqa: RUF001


def test_page_shows_a_dash_for_a_missing_measure() -> None:
    report = synthetic_reports.rich()
    assert report.video
    first, *others = report.video.points
    lacking = [
        replace(point, measures={name: point.measures[name] for name in ("success_rate", "video_psnr")})
        for point in others
    ]
    text = page(replace(report, video=replace(report.video, points=(first, *lacking))), [], "")
    assert "1 checkpoints" in text
    assert text.count('<td class="number">–</td>') >= 2 * len(lacking)  # noqa: RUF001


def test_page_of_a_real_curve_contains_its_sentences_and_points() -> None:
    """Curves as `Curve` reports them: two ratios and three seeds, and a baseline and one arm."""
    for curve in (several(1.0, 0.3, missing=(5,)), with_a_baseline()):
        report = curve.report()
        text = page(report, [], "")
        for sentence in (*report.answer, report.caption):
            assert escape(sentence) in text
        for point in curve.points:
            assert f">{point.successes}/{point.episodes}<" in text


def test_page_redacts_passwords(pages: dict[str, Path]) -> None:
    text = pages["rich"].read_text()
    assert "hunter2" not in text
    assert text.count("https://***@mlflow.example.org") == 2


def test_page_names_films_over_the_size_limit(film: bytes) -> None:
    all_four = synthetic_reports.films(film)
    text = page(synthetic_reports.rich(), all_four, "", films_bytes=3 * ((len(film) + 2) // 3 * 4))
    assert text.count("data:video/mp4") == 3
    assert f"{all_four[3]['arm']}, episode {all_four[3]['episode']} (failure)." in text


def test_page_with_an_undecodable_film_has_no_poster(film: bytes) -> None:
    text = page(synthetic_reports.rich(), synthetic_reports.films(film[:50]), "")
    assert text.count("data:video/mp4") == 4
    assert "data:image/jpeg" not in text


def test_page_is_a_pure_function_of_its_data(film: bytes) -> None:
    data = synthetic_reports.rich()
    before = copy.deepcopy(data)
    assert page(data, synthetic_reports.films(film), SWEEP) == page(
        synthetic_reports.rich(), synthetic_reports.films(film), SWEEP
    )
    assert data == before


def five_lines() -> CurveReport:
    """Return a curve of five policies with long names, six demo counts each, and an answer of nine sentences."""
    report = synthetic_reports.rich()
    points, lines = [], []
    for number in range(5):
        series = Series(f"policy_number_{number}_of_another_library", 0.0)
        lines.append(replace(report.lines[0], series=series, label=series.policy))
        for place, demos in enumerate((5, 10, 30, 100, 300, 1000)):
            own = report.points[(number + place) % 12]
            point = replace(own.point, policy=series.policy, demo_count=demos, action_free_ratio=0.0)
            points.append(replace(own, point=point))
    answer = tuple(f"{number}: {report.answer[0]} {report.answer[1]}" for number in range(9))
    return replace(report, answer=answer, points=tuple(points), lines=tuple(lines), arms=(), where=None)


def axe() -> str:
    """Return the script of axe-core, from the package that `make browser` installs."""
    found = find_spec("axe_playwright_python")
    if not found and "CI" not in os.environ:
        pytest.skip("axe-core is not installed here; `make browser` installs it")
    assert found
    assert found.origin
    return (Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8")


def sheets(pdf: bytes) -> int:
    """Return the number of pages of a PDF by Chromium, which writes their objects uncompressed."""
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


def luminance(colour: str) -> float:
    """Return the relative luminance, after WCAG 2.2, of "rgb(r, g, b)"."""
    parts = np.array([float(part) for part in re.findall(r"[\d.]+", colour)[:3]]) / 255
    return float(
        np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    )


def contrast(colour: str, ground: str) -> float:
    """Return WCAG 2.2's contrast ratio, 1 to 21."""
    darker, lighter = sorted((luminance(colour), luminance(ground)))
    return (lighter + 0.05) / (darker + 0.05)
