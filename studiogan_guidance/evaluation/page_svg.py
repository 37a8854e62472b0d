"""Charts as SVG in a page: in its colours, with a text for each point."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

from studiogan_guidance.evaluation.charts import COLORS, FAINT, INK, STYLE, SURFACE, Chart

SVG = "http://www.w3.org/2000/svg"
LINK = "http://www.w3.org/1999/xlink"

# The page's variable for each colour of a chart, which has another value on dark screens.
VARIABLES = {INK: "ink", FAINT: "line", SURFACE: "page", **{color: f"chart-{i}" for i, color in enumerate(COLORS)}}


def svg(chart: Chart, name: str, description: str) -> str:
    """A chart as an element of a page, in the colours of the page; ``name`` keeps its identifiers apart from others'.

    Each point has a title with its text, and so large a target that a pointer finds it.
    """
    import matplotlib

    # The drawing of matplotlib.
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        chart.figure.savefig(buffer, format="svg", transparent=True)
    colors = re.compile("|".join(VARIABLES))
    text = colors.sub(lambda found: f"var(--{VARIABLES[found[0]]})", buffer.getvalue())
    root = ElementTree.fromstring(text)

    # A picture of any width, whose identifiers are its own.
    for key in ("width", "height"):
        root.attrib.pop(key)
    for child in root.findall(f"{{{SVG}}}metadata"):
        root.remove(child)
    root.set("role", "img")
    root.set("aria-label", description)
    for element in root.iter():
        _rename(element, name)

    # Titles.
    for number, title in enumerate(chart.titles):
        mark = root.find(f".//{{{SVG}}}g[@id='{name}-mark-{number}']")
        if mark is not None:
            _add_title(mark, title)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", LINK)
    return ElementTree.tostring(root, encoding="unicode")


def _rename(element: ElementTree.Element, name: str) -> None:
    """Put ``name`` before the identifier of an element, and before those that it points at."""
    for key, value in element.attrib.items():
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif key == f"{{{LINK}}}href" and value.startswith("#"):
            element.set(key, f"#{name}-{value[1:]}")
        else:
            element.set(key, value.replace("url(#", f"url(#{name}-"))


def _add_title(mark: ElementTree.Element, title: str) -> None:
    """Text and target of a point, whose place is that of the marker that it uses."""
    mark.set("class", "mark")
    ElementTree.SubElement(mark, f"{{{SVG}}}title").text = title
    used = mark.find(f".//{{{SVG}}}use")
    if used is not None:
        place = {"cx": used.get("x", "0"), "cy": used.get("y", "0"), "r": "9", "fill": "transparent"}
        ElementTree.SubElement(mark, f"{{{SVG}}}circle", place)
