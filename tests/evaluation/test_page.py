"""The page of a folder: hostile words, and how a real browser lays it out, wide and narrow, light and dark."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run

from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import charts, page, page_svg, page_tables, pictures, results
from studiogan_guidance.evaluation.compare import summary

HOSTILE = "<script>document.title='owned'</script>\"'&$x^2$"
NAMES = ("chromium", "google-chrome", "chrome", "chromium-browser")


def a_row(
    sampler: str, options: dict[str, Any], fid: float | None, recall: float = 0.5, seed: int = 0
) -> dict[str, Any]:
    metrics = {"fid": fid, "precision": round(1 - recall / 3, 3), "recall": recall, "fid@random": 0.5}
    return results.row(
        sampler,
        options,
        metrics=metrics,  # type: ignore[arg-type]
        protocol={"num": 10, "num_real": 20, "seed": seed, "data": HOSTILE, "reference": "test"},
        cost={"synthesis": 1.0, "sampling_seconds": 0.5},
        seconds=1.5,
        generator={"source": "the built-in GAN", "sha256": 64 * "a"},
        config={},
        device="cpu",
    )


def a_sweep(folder: Path) -> Path:
    """Scales near 1, where points lie close, in another order than that of FID, and images with long captions."""
    scales = (0.8, 0.9, 1.0, 1.05, 1.1, 1.2, 1.5, 2.0)
    options = [{"scale": scale, "joint": HOSTILE} for scale in scales]
    recalls = [0.5 - (scale - 0.9) ** 2 / 4 for scale in scales]
    rows = [a_row("other_package", each, 1000 + 9 * recall, recall) for each, recall in zip(options, recalls)]
    results.append(
        folder / results.FILE,
        [a_row("plain", {}, 1009, 0.5), *rows, a_row("x", {"scale": 3.0, "joint": HOSTILE}, None)],
    )
    sheet = np.random.default_rng(0).integers(0, 256, (64, 15 * 32, 3), np.uint8)
    captions = [f"base.scale={i}.25 joint=class_subset{i * 'w'}" for i in range(14)] + [HOSTILE]
    pictures.save_strip(folder / "strip.png", pictures.Strip(sheet, captions))
    (folder / "table.csv").write_text("")
    (folder / page.COMMAND).write_text(f"studiogan-guidance sweep -o '{HOSTILE}' --out {60 * 'long/'}\n")
    return folder


def a_comparison(folder: Path) -> Path:
    """Nineteen samplers, many of them at nearly one place."""
    names = [*(entry.name for entry in charts.SAMPLERS), "of_another_package"]
    places = np.random.default_rng(1).normal(0.5, 0.02, (len(names), 2))
    rows = [
        a_row(name, {} if name == "plain" else {"joint": HOSTILE}, 100 * fid + seed, recall + seed / 1000, seed)
        for name, (fid, recall) in zip(names, places)
        for seed in (0, 10, 30)
    ]
    (folder / "compare.json").write_text(json.dumps(summary(rows)))
    return folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_sweep(tmp_path_factory.mktemp("sweep"))


def test_words_of_results_are_text_and_nothing_comes_from_outside(sweep: Path) -> None:
    text = page.html(sweep)
    assert text.count("<script>") == 1
    assert html.escape(HOSTILE).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in text
    assert not re.findall(r"""(?:src|href)=["']?(?!data:|#)[^"'\s>]+""", text)
    assert "url(http" not in text
    assert "@import" not in text
    assert len(text.encode()) < 2**20
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert len(identifiers) == len(set(identifiers))


def test_the_summary_names_the_best_row_beside_plain(sweep: Path, tmp_path: Path) -> None:
    text = page.html(sweep)
    assert "The best FID is 1001.778, of other_package scale=2.0; plain sampling has 1009.000." in text
    assert "The difference is \N{MINUS SIGN}7.222, on one range of seeds, so without an error." in text
    compared = page.html(a_comparison(tmp_path))
    assert re.search(r"The best FID is [\d.]+ ± [\d.]+, of \w+.*; plain sampling has [\d.]+ ± [\d.]+\.", compared)
    assert "(standard error)" in compared


def test_tables_mark_the_best_and_plain() -> None:
    rows = [
        a_row("plain", {}, 3.0),
        a_row("gandance", {"scale": 2.0}, 2.0, 0.7),
        a_row("gandance", {"scale": 1.0}, 3.0),
    ]
    table = page_tables.of_rows("t", rows)
    assert [column.title for column in table.columns][:3] == ["sampler", "scale", "FID"]
    assert [line.is_plain for line in table.lines] == [True, False, True]  # by its name, and by its options
    best = {column.title: [line.cells[i].is_best for line in table.lines] for i, column in enumerate(table.columns)}
    assert best["FID"] == [False, True, False]  # the least
    assert best["recall"] == [False, True, False]  # the largest
    assert best["precision"] == [True, False, True]
    assert not any(best["FID@random"])  # all are equal
    assert not any(best["time"])


def test_points_have_titles_and_the_colours_of_the_page() -> None:
    rows = [a_row("gandance", {"scale": scale}, 1 / scale) for scale in (1.0, 1.5)]
    text = page_svg.svg(charts.over_option(rows, "scale", rows[0]), "c", "what it shows")
    assert text.count("<title>") == 2
    assert "<title>gandance scale=1.5\nFID 0.667" in text
    assert not re.search("#[0-9a-f]{6}", text)
    assert 'aria-label="what it shows"' in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, "", "no results in"),
        ("compare.json", "{", "is no JSON"),
        ("compare.json", "[]", "holds no result"),
        ("compare.json", '{"rows": [], "protocol": {}}', "measure again, by the same command"),
        ("compare.json", '{"rows": 3}', "measure again, by the same command"),
        ("tuned.json", '{"trials": [], "objective": "fid"}', "measure again, by the same command"),
        ("tuned.json", '{"searched": {}}', "measure again, by the same command"),
    ],
)
def test_damaged_results_are_one_line_and_leave_no_page(
    tmp_path: Path, name: str | None, content: str, message: str
) -> None:
    if name:
        (tmp_path / name).write_text(content)
    result = run("report", tmp_path)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(UserError, match="is no folder"):
        page.write(tmp_path / "nowhere", tmp_path / "report.html")


def test_the_command_keeps_and_shows_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my runs"
    small = ["--num", 20, "--metrics", "fid", "--grid", "scale=1,1.5", "--no-compare-plain", "--out", folder]
    assert run("sweep", *small).exit_code == 0
    words = "studiogan-guidance sweep --num 20 --metrics fid --grid scale=1,1.5 --no-compare-plain --out 'my runs'"
    assert (folder / page.COMMAND).read_text() == f"{words}\n"
    assert run("report", folder, "--out", "p.html").exit_code == 0
    assert html.escape(words).replace("&#x27;", "&#39;") in Path("p.html").read_text()
    assert Path("p.html").read_text().count("<img") == 2


# In a browser.
PROBE = """
const box = (element) => element.getBoundingClientRect();
const overlaps = (elements) => {
  const boxes = [...elements].map(box).filter((each) => each.width > 0);
  let count = 0;
  boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => {
    const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    count += width > 1 && height > 1;
  }));
  return count;
};
const luminance = (color) => {
  const [r, g, b] = color.match(/[\\d.]+/g).map((x) => x / 255)
    .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const background = (element) => {
  for (let each = element; each; each = each.parentElement) {
    const color = getComputedStyle(each).backgroundColor;
    if (!/, 0\\)$|transparent/.test(color)) return color;
  }
  return "rgb(255, 255, 255)";
};
const contrast = (element) => {
  const style = getComputedStyle(element);
  const text = element instanceof SVGElement ? style.fill : style.color;
  const [a, b] = [luminance(text), luminance(background(element))].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
};
const column = (index) => [...document.querySelectorAll("table.results tbody tr")]
  .map((row) => row.cells[index].dataset.value ?? row.cells[index].textContent);
const found = () => {
  const headings = [...document.querySelectorAll("table.results thead th")];
  const index = headings.findIndex((each) => each.textContent.startsWith("FID"));
  const sorted = [column(index)];
  const sorts = [];
  for (let i = 0; i < 2; i++) {
    headings[index].querySelector("button").click();
    sorted.push(column(index));
    sorts.push(headings.map((each) => each.getAttribute("aria-sort")));
  }
  const words = "h1, h2, p, th, td, caption, figcaption, code, button, small, strong, svg text";
  const texts = [...document.querySelectorAll(words)];
  const images = [...document.images];
  return {
    title: document.title,
    width: innerWidth,
    page: document.documentElement.scrollWidth,
    background: background(document.body),
    ink: getComputedStyle(document.body).color,
    curve: getComputedStyle(document.querySelector("svg .mark use")).fill,
    contrast: Math.min(...texts.filter((each) => each.textContent.trim()).map(contrast)),
    captions: overlaps(document.querySelectorAll(".strip figure")),
    outside: [...document.querySelectorAll(".strip figcaption")]
      .filter((each) => each.scrollWidth > each.clientWidth + 1).length,
    labels: document.querySelectorAll("svg [id*='-name-']").length,
    names: [...document.querySelectorAll("svg")].map((svg) => overlaps(svg.querySelectorAll("[id*='-name-']"))),
    ticks: [...document.querySelectorAll("svg")].map((svg) => overlaps(svg.querySelectorAll("[id*='tick_'] text"))),
    letters: Math.min(...[...document.querySelectorAll("svg text")].map((each) => box(each).height)),
    images: images.map((each) => [each.complete && each.naturalWidth, each.width, each.height / each.naturalHeight]),
    rendering: images.map((each) => getComputedStyle(each).imageRendering),
    alignment: getComputedStyle(document.querySelector("td.number")).textAlign,
    sorted, sorts,
  };
};
addEventListener("load", () => parent.postMessage(JSON.stringify(found()), "*"));
"""
FRAMES = """<!DOCTYPE html><title>frames</title><body><script>
const told = [];
addEventListener("message", (event) => {
  told.push(JSON.parse(event.data));
  const pre = document.createElement("pre");
  pre.textContent = event.data;
  document.body.append(pre);
});
</script>%s"""


def browser() -> str:
    """A browser; the test is skipped where there is none."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip(f"no browser: put {', '.join(NAMES[:-1])} or {NAMES[-1]} on the PATH, or its path into $CHROMIUM")
    return found


def seen(folder: Path, text: str, scheme: str, tmp_path: Path) -> list[dict[str, Any]]:
    """What the probe finds in a page that is 360 and 1280 pixels wide, in one start of the browser."""
    digest = page.script_digest(PROBE)
    probed = text.replace("script-src '", f"script-src 'sha256-{digest}' '").replace(
        "</body>", f"<script>{PROBE}</script></body>"
    )
    (tmp_path / "probed.html").write_text(probed)
    frames = [
        f'<iframe src="probed.html" width="{width}" height="800" style="border:0"></iframe>' for width in (360, 1280)
    ]
    (tmp_path / "frames.html").write_text(FRAMES % "".join(frames))
    command = [
        browser(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--blink-settings=preferredColorScheme={'0' if scheme == 'dark' else '1'}",
        "--window-size=1700,900",
        "--virtual-time-budget=5000",
        "--dump-dom",
        f"file://{tmp_path / 'frames.html'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    told = [json.loads(html.unescape(each)) for each in re.findall(r"<pre>(.*?)</pre>", done.stdout, re.S)]
    assert len(told) == 2, done.stderr
    return sorted(told, key=lambda each: each["width"])


@pytest.mark.parametrize(("make", "scheme"), [(a_sweep, "light"), (a_comparison, "dark")])
def test_a_browser_shows_it_wide_and_narrow(make: Callable[[Path], Path], scheme: str, tmp_path: Path) -> None:
    browser()
    folder = make(tmp_path)
    pair = seen(folder, page.html(folder), scheme, tmp_path)
    assert [each["width"] for each in pair] == [360, 1280]
    for each in pair:
        assert each["title"] != "owned"
        assert each["page"] <= each["width"]  # it does not scroll sideways
        assert each["contrast"] >= 4.5
        assert (each["captions"], each["outside"]) == (0, 0)
        assert each["labels"] >= 9
        assert not any(each["names"] + each["ticks"])
        assert each["alignment"] == "right"
        assert each["letters"] > 8

        # Colours of the scheme, in charts, too.
        is_dark = scheme == "dark"
        assert each["background"] == ("rgb(21, 23, 27)" if is_dark else "rgb(255, 255, 255)")
        assert (each["curve"] in ("rgb(0, 105, 168)", "rgb(27, 27, 31)")) == (not is_dark)

        # Images of 32 pixels, enlarged by a whole number.
        assert all(image == [32, 96, 3] for image in each["images"])
        assert set(each["rendering"]) <= {"pixelated"}

        # A click on a heading sorts by numbers, a second one the other way; what is missing stays last.
        before, up, down = each["sorted"]
        numbers = sorted(float(value) for value in before if value != "\N{EN DASH}")
        missing = [value for value in before if value == "\N{EN DASH}"]
        assert [*map(float, up[: len(numbers)]), *up[len(numbers) :]] == [*numbers, *missing]
        assert [*map(float, down[: len(numbers)]), *down[len(numbers) :]] == [*numbers[::-1], *missing]
        assert before != up
        assert [sorted(set(sorts)) for sorts in each["sorts"]] == [["ascending", "none"], ["descending", "none"]]
        assert [sorts.count("none") for sorts in each["sorts"]] == [len(each["sorts"][0]) - 1] * 2
