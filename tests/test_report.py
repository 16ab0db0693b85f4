"""The report is one safe, complete page. All numbers on the sample page are invented and marked as such."""

import csv
import functools
import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from PIL import Image

from hwm.errors import RunError
from hwm.evaluation import demo_report, drawing, figures, figures_panels
from hwm.evaluation.figures import Bar, Ceiling, ClassScore, Figure, Line
from hwm.evaluation.report import Report
from hwm.evaluation.report_parts import (
    Clip,
    Column,
    Picture,
    Row,
    Table,
    Verdict,
    difference_verdict,
    table_block,
)
from hwm.evaluation.statistics import Interval
from hwm.terminal import counted
from hwm.viz.overlay import Forecast, annotate
from small_disk import files_of_at_most

ATTACK = '<script>alert("x")</script> & "quotes" $math$'
VOID = {"meta", "img", "br", "link", "input"}


@functools.cache
def sample_figures() -> list[Figure]:
    """Every kind of plot, from invented numbers."""
    steps = list(range(0, 600, 10))
    decay = 0.5 * np.exp(-np.array(steps) / 200) + 0.3
    horizons = [0.25, 0.5, 1.0, 2.0, 4.0]
    names = ["World model, gaze", "World model, no gaze"]
    return [
        figures.loss_curves(
            "loss",
            [Line(name, steps, list(decay - 0.02 * i)) for i, name in enumerate(names)],
            [Line(name, steps[::12], list(decay[::12] + 0.03 - 0.03 * i)) for i, name in enumerate(names)],
        ),
        figures.gate_over_training("gate", [Line("Lowest to highest channel", steps, *([list(decay * 0)] * 3))]),
        figures.accuracy_over_horizon(
            "horizon",
            [Line(names[0], horizons, [0.7, 0.6, 0.5, 0.4, 0.3], [0.6, 0.5, 0.4, 0.3, 0.2], [0.8, 0.7, 0.6, 0.5, 0.4])],
            [Line("Best possible with gaze", horizons, [0.95, 0.9, 0.8, 0.5, 0.45])],
        ),
        figures.accuracy_bars(
            "bars",
            [
                Bar(names[0], 0.51, 0.44, 0.58),
                Bar(names[1], 0.43, 0.36, 0.50),
                Bar("Encoder only", 0.40, 0.33, 0.47),
                Bar("Previous step", 0.33, is_baseline=True),
                Bar("Majority", 0.14, is_baseline=True),
            ],
            [Ceiling("Best possible without gaze", 0.55), Ceiling("Best possible with gaze", 0.81)],
        ),
        figures.per_class_scores(
            "steps",
            names,
            [
                ClassScore("Crack the egg", 31, (0.8, 0.6)),
                ClassScore(ATTACK, 9, (0.5, 0.55)),
                ClassScore("搅拌", 4, (0, 0)),
            ],
        ),
    ]


def sample_report() -> Report:
    """A page with every block."""
    report = Report(
        "Sample report, all numbers invented",
        "This page shows every block of the report. Its numbers were made up by a test and mean nothing.",
    )
    report.verdicts(
        [
            difference_verdict(
                "Gaze in the world model against none", Interval(0.082, 0.021, 0.143, 0.95, 24), "Top-1."
            ),
            difference_verdict("World model against encoder only", Interval(0.011, -0.034, 0.061, 0.95, 24), "Top-1."),
            difference_verdict("Shuffled gaze against none", Interval(-0.041, -0.078, -0.006, 0.95, 24), "Top-1."),
        ]
    )
    report.section("Scores", "Next step named 1.0 s before it starts, on 240 segments of 24 takes no model has seen.")
    share = {"kind": "share", "best": "highest"}
    columns = [
        Column("Model"),
        Column("Top-1", **share),
        Column("Top-5", **share),
        Column("mAP", **share),
        Column("Recall@5", **share),
        Column("Train loss", "number", "L1", 3, "lowest"),
    ]
    rows = [
        Row(["World model, gaze", Interval(0.512, 0.443, 0.581, 0.95, 24), 0.884, 0.471, 0.902, 0.3124]),
        Row(["World model, no gaze", Interval(0.430, 0.361, 0.499, 0.95, 24), 0.861, 0.402, 0.889, 0.3311]),
        Row(["Encoder only", Interval(0.402, 0.334, 0.470, 0.95, 24), 0.884, 0.391, 0.871, None]),
        Row(["Previous step", 0.331, 0.790, 0.318, 0.741, None], is_reference=True),
        Row(["Best possible with gaze", 0.812, 1.0, None, None, None], is_reference=True),
    ]
    report.table(Table(columns, rows, "Bold: best model. Below the values: 95% interval over takes."))
    bars, *others = sample_figures()[3], *[f for f in sample_figures() if f.name != "bars"]
    report.figure(bars, "Whiskers: 95% interval over takes.")
    report.section("Training")
    for figure in others:
        report.figure(figure, f"About {ATTACK}.")
    report.section("What it sees")
    report.note("The heat map is attention estimated by Gaze-LLE. It is not the wearer's measured gaze.")
    frames = [_scene(seed) for seed in range(3)]
    report.pictures([Picture(f"take-{i}", frame, f"Take {i}, {ATTACK}") for i, frame in enumerate(frames)], "Examples.")
    report.clip(Clip("clip", b"not really a video", "A clip.", frames[0]))
    report.section("Coverage")
    report.coverage(245, 240, [(f"take_{i}[{ATTACK}]", "starts before the horizon") for i in range(5)])
    report.section("Provenance")
    report.provenance(
        {"Protocol": {"id": "start-minus-tau/v1"}, "Weights": {"encoder sha256": "9f" * 32, ATTACK: ATTACK}}
    )
    return report


def _scene(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:128, 0:128]
    frame = np.stack([110 + rows // 2, 120 + 0 * rows, 150 - columns // 3], axis=-1).astype(np.uint8)
    for _ in range(6):
        y, x = rng.integers(10, 118, 2)
        frame[(rows - y) ** 2 + (columns - x) ** 2 < 80] = rng.integers(40, 255, 3)
    heat = np.exp(-(((np.mgrid[0:64, 0:64] - rng.integers(12, 52, (2, 1, 1))) ** 2).sum(axis=0)) / 60)
    forecast = Forecast((("Crack the egg", 0.62), ("Pour water", 0.21), ("Stir", 0.09)), "Pour water", 1.0)
    return annotate(frame, forecast, heat, (0.6, 0.4))


class _Page(HTMLParser):
    """Collects tags, addresses and ids, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in {"src", "href", "poster", "srcset", "xlink:href", "action", "data"}:
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_report().write(tmp_path_factory.mktemp("run") / "report.html")


def test_the_page_loads_nothing_runs_nothing_and_is_well_formed(written):
    text = written.read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "form", "base"}
    assert page.handlers == []
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "default-src 'none'" in text
    style = re.search(r"<style>(.*?)</style>", text, re.S)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert len(re.findall("<style", text)) == 1


def test_names_that_hold_markup_stay_text(written):
    text = written.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "alert(&quot;x&quot;)" in text
    plain = Report(ATTACK, ATTACK)
    plain.section(ATTACK, ATTACK)
    plain.paragraph(ATTACK)
    assert "<script" not in plain.html()


def test_ids_are_unique_and_every_reference_is_resolved(written):
    page = _Page()
    page.feed(written.read_text(encoding="utf-8"))
    assert len(page.ids) == len(set(page.ids))
    targets = {address[1:] for address in page.addresses if address.startswith("#")}
    assert targets <= set(page.ids)
    assert "section-1" in targets


def test_plots_pictures_and_lists_lie_beside_the_page(written):
    names = {path.name for path in (written.parent / "figures").iterdir()}
    expected = {
        f"{plot}.{ending}" for plot in ("loss", "gate", "horizon", "bars", "steps") for ending in ("svg", "png", "csv")
    }
    assert names == expected | {"take-0.png", "take-1.png", "take-2.png", "clip.mp4", "exclusions.csv"}
    assert {path.name for path in written.parent.iterdir()} == {"report.html", "figures"}


def test_the_same_content_gives_the_same_bytes(written):
    assert sample_report().html() == written.read_text(encoding="utf-8")
    bars = [Bar("a", 0.5, 0.4, 0.6), Bar("b", 0.2)]
    assert figures.accuracy_bars("twice", bars) == figures.accuracy_bars("twice", bars)


def test_a_write_that_fails_leaves_the_old_report_and_no_scraps(tmp_path, monkeypatch):
    path = Report("Old").write(tmp_path / "report.html")
    old = path.read_bytes()

    def full_disk(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        Report("New").write(path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_full_disk_names_the_page(tmp_path: Path) -> None:
    with files_of_at_most(100), pytest.raises(OSError, match="too large") as caught:
        Report("New").write(tmp_path / "report.html")
    assert caught.value.filename == str(tmp_path / "report.html")


def _cells(table: Table) -> list[str]:
    return re.findall(r"<(?:td|th scope=\"row\")[^>]*>(.*?)</t[dh]>", table_block(table))


def test_best_values_are_bold_ties_included_references_never():
    columns = [
        Column("Model"),
        Column("Top-1", "share", best="highest"),
        Column("Loss", "number", best="lowest", digits=2),
    ]
    rows = [Row(["a", 0.5004, 0.31]), Row(["b", 0.4996, 0.29]), Row(["c", 0.2, None]), Row(["ceiling", 0.9, 0.0], True)]
    bold = '<span class="best">{}</span>'.format
    assert _cells(Table(columns, rows)) == [
        *("a", bold("50.0"), "0.31"),
        *("b", bold("50.0"), bold("0.29")),
        *("c", "20.0", "–"),
        *("ceiling", "90.0", "0.00"),
    ]


def test_nothing_is_bold_where_all_rows_are_equal_and_numbers_keep_their_sign():
    columns = [Column("Model"), Column("Gain", "share", best="highest"), Column("Segments", "count")]
    block = table_block(Table(columns, [Row(["a", -0.012, 12345]), Row(["b", -0.012, float("nan")])]))
    assert "best" not in block
    assert "−1.2" in block
    assert "12,345" in block
    assert "NaN" in block
    assert table_block(Table(columns, [Row(["a", Interval(0.1, -0.02, 0.3, 0.95, 9), 1])])).count("−2.0 … 30.0") == 1


def test_a_row_that_does_not_fit_its_columns_is_refused():
    with pytest.raises(RunError, match="does not fit its columns"):
        table_block(Table([Column("a"), Column("b")], [Row(["only one"])]))


def test_verdicts_follow_the_interval_and_not_the_value():
    assert difference_verdict("q", Interval(0.05, 0.01, 0.09, 0.95, 9)).words == "Better"
    assert difference_verdict("q", Interval(-0.05, -0.09, -0.01, 0.95, 9)).words == "Worse"
    unclear = difference_verdict("q", Interval(0.05, -0.01, 0.11, 0.95, 9))
    assert (unclear.words, unclear.tone) == ("No difference shown", "neutral")
    assert unclear.value == "+5.0 points"
    alone = difference_verdict("q", Interval(0.5, None, None, 0.95, 1))
    assert (alone.words, alone.tone) == ("Too few takes to say", "neutral")


def test_segments_that_are_not_accounted_for_stop_the_report():
    report = Report("r")
    with pytest.raises(RunError, match="every segment"):
        report.coverage(10, 8, [("a", "too short")])
    report.coverage(10, 8, [("a", "too short"), ("b", "too short")])
    assert "8 of 10 segments scored; 2 left out" in report.html()


def test_one_of_a_thing_is_not_told_in_the_plural() -> None:
    report = Report("r")
    report.coverage(1, 0, [("a", "too short")])
    assert "0 of 1 segment scored; 1 left out" in report.html()
    assert [counted(number, "video") for number in (0, 1, 2, 1024)] == [
        "0 videos",
        "1 video",
        "2 videos",
        "1,024 videos",
    ]


def test_what_belongs_together_stays_on_one_line() -> None:
    report = Report("r", "at 1 %")
    report.section("s", "at 2 %")
    report.paragraph("at 3 %")
    report.note("at 4 %")
    report.verdicts([Verdict("at 5 %", "6 %", "at 7 %", detail="at 8 %")])
    report.table(Table([Column("Model"), Column("Top-1 of all", "share")], [Row(["a", 0.5])], note="at 9 %"))
    report.clip(Clip("clip", b"", "at 10 %"))
    report.pictures([Picture("p", np.zeros((2, 2, 3), np.uint8), "at 11 %")], "at 12 %")
    told = re.sub(r' (alt|aria-label)="[^"]*"', "", report.html())
    assert [int(number) for number in re.findall(r"(\d+)&nbsp;%", told)] == list(range(1, 13))
    assert '<span class="whole">Top-1</span> of all&nbsp;<span class="unit">%' in told
    assert ".whole { white-space: nowrap; }" in told


def test_text_of_the_page_can_be_read_in_both_schemes() -> None:
    style = files("hwm.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    light, dark, paper = (dict(re.findall(r"--(\w+): (#\w+)", part)) for part in style.split(":root {")[1:])
    for colours in (light, dark, paper):
        for text in ("text", "soft", "faint", "link", "good", "bad", "neutral"):
            for ground in ("page", "card", "wash"):
                low, high = sorted(_luminance(colours[name]) for name in (text, ground))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground, colours)


def _luminance(colour: str) -> float:
    """Relative luminance of `#rgb` or `#rrggbb`, as WCAG defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    shares = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_words_of_the_page_keep_their_lines_and_stay_beside_their_values() -> None:
    block = table_block(Table([Column("Before"), Column("With gaze", "text")], [Row(["1 s", "67 % ✓ stir\n9 % pour"])]))
    assert '<td class="break">67&nbsp;% ✓ stir\n9&nbsp;% pour</td>' in block
    style = files("hwm.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    rules = {part.split("{")[0].strip(): part.split("{")[1] for part in style.split("}") if part.count("{") == 1}
    assert "white-space: pre-line" in rules[".break"]
    assert "overflow-wrap: anywhere" in rules["dt, dd"], "the name of a setting may be longer than its column"


def test_a_clip_has_its_words_for_those_who_do_not_see_it() -> None:
    report = Report("r")
    report.clip(Clip("clip", b"", 'From "there" on'))
    assert 'aria-label="From &quot;there&quot; on"' in report.html()


def test_two_parts_with_one_name_and_names_with_folders_are_refused():
    report = Report("r")
    report.clip(Clip("one", b"", ""))
    with pytest.raises(RunError, match="one file name"):
        report.clip(Clip("one", b"", ""))
    with pytest.raises(RunError, match="plain file name"):
        report.clip(Clip("../one", b"", ""))
    with pytest.raises(RunError, match="becomes a file name"):
        figures.accuracy_bars("Bars 1", [Bar("a", 0.5)])
    with pytest.raises(RunError, match="nothing to draw"):
        figures.accuracy_bars("bars", [])


@pytest.mark.parametrize("figure", sample_figures(), ids=lambda figure: figure.name)
def test_figures_are_valid_transparent_and_take_the_page_colour(figure):
    root = ElementTree.fromstring(figure.svg)
    assert root.get("viewBox")
    assert root.get("width") is None
    assert "currentColor" in figure.svg
    assert figures.TEXT in figure.svg[: figure.svg.index(">", figure.svg.index("<svg"))]
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
    image = Image.open(io.BytesIO(figure.png))
    assert image.mode == "RGBA"
    assert image.getpixel((0, image.height - 1)) == pytest.approx((255, 255, 255, 0))
    assert image.width == 1520


MANY = [f"run {number}" for number in range(14)]
SHORT, LONG = ([Line(name, range(points), [0.5] * points) for name in MANY] for points in (4, 40))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.loss_curves("x", LONG, SHORT),
        lambda: figures.gate_over_training("x", LONG),
        lambda: figures.accuracy_over_horizon("x", SHORT),
        lambda: figures.per_class_scores("x", MANY, [ClassScore("stir", 4, [0.5] * len(MANY))] * 8),
        lambda: figures_panels.line_panels("x", [figures_panels.Panel("skill", SHORT)], "Skill", "step"),
    ],
    ids=["loss", "gate", "horizon", "classes", "panels"],
)
def test_no_two_series_of_a_plot_look_the_same(draw: Callable[[], Figure], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def caught(canvas: Canvas, *given: Any) -> Figure:
        drawn.append(canvas)
        return drawing.finish(canvas, *given)

    for module in (figures, figures_panels):
        monkeypatch.setattr(module, "finish", caught)
    draw()
    (canvas,) = drawn
    legends = canvas.legends or [axes.get_legend() for axes in canvas.axes]
    shown = [item for item in legends[0].legend_handles if isinstance(item, Line2D)]
    assert len({_look(item) for item in shown}) == len(shown) >= len(MANY)
    lines = [line for axes in canvas.axes for line in axes.lines if not str(line.get_label()).startswith("_")]
    assert {_look(line) for line in lines} == {_look(item) for item in shown}, "the legend shows what is drawn"


def _look(line: Line2D) -> tuple[object, ...]:
    return line.get_color(), line.get_linestyle(), line.get_marker()


@pytest.mark.parametrize("installed", [True, False])
def test_chinese_names_are_text_in_the_page_and_have_room(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    name, wide = "把鸡蛋打进碗里搅拌均匀", "切" * 30
    if installed:  # no font of that kind is here: another one stands for it
        monkeypatch.setattr(drawing, "CJK_FONTS", ("Not There", "STIXGeneral", "DejaVu Serif"))
        assert drawing.style_of("x")["font.family"] == ["DejaVu Sans", "STIXGeneral"]
    figure = figures.accuracy_bars("bars", [Bar(name, 0.4), Bar("\x1b[31m\x00" + wide, 0.5)])  # a warning fails here
    texts = [node for node in ElementTree.fromstring(figure.svg).iter() if node.tag.endswith("text")]
    (drawn,) = [node for node in texts if node.text == name]
    assert "system-ui, 'DejaVu Sans', sans-serif" in drawn.attrib["style"]
    assert "STIX" not in figure.svg
    assert float(drawn.attrib["x"]) >= 9 * len(name), "it ends at x, is one em wide a letter, and stays in the picture"
    assert any(node.text == "□[31m□" + "切" * 17 + "…" for node in texts)
    assert wide in figure.csv


def test_the_csv_holds_the_numbers_drawn_with_full_names():
    steps = {figure.name: figure for figure in sample_figures()}
    rows = list(csv.reader(io.StringIO(steps["steps"].csv)))
    assert rows[0] == ["class", "num_segments", "model", "share"]
    assert [ATTACK, "9", "World model, no gaze", "0.55"] in rows
    assert ["搅拌", "4", "World model, gaze", "0"] in rows
    bars = list(csv.reader(io.StringIO(steps["bars"].csv)))
    assert ["Majority", "baseline", "0.14", "", ""] in bars
    assert ["Best possible with gaze", "ceiling", "0.81", "", ""] in bars


@pytest.mark.parametrize("validation", [{"skill": 0.1, "skill_1": 0.25}, {"l1": 0.0, "copy_l1": 0.0}])
def test_the_demo_leaves_out_a_skill_that_cannot_be_told(tmp_path: Path, validation: dict[str, float]) -> None:
    names = ("top1", "top5", "mean_average_precision", "class_mean_recall_at_1", "class_mean_recall_at_5")
    scores, stage1 = dict.fromkeys(names, 0.5), [{"step": 1, "train/teacher_forced": 1, "val/l1": 1, "train/gate": 0}]
    arms = [
        demo_report.Arm(name, scores, np.array([True, False]), stage1, validation, {"stir": (0.5, 2)})
        for name in "abcde"
    ]
    best = demo_report.BestScores(0.9, 0.8, 0.9, 0.8)
    findings = demo_report.DemoFindings(
        demo_report.Arms(*arms), {"majority": scores}, best, ["t", "u"], 1.0, "the camera", 2, (), {}, 1.0
    )
    page = demo_report.write_report(tmp_path / "report.html", findings, [], Clip("clip", b"", "")).read_text()
    assert ("25.0&nbsp;%" in page) == ("skill_1" in validation)
    assert ("error removed 1 step ahead" in page) == ("skill_1" in validation)
    assert "Stage 1: the world model" in page
