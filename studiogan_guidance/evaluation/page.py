"""One HTML page of a sweep, a comparison or a search: a single file that needs no network.

Everything that is read from a folder may come from elsewhere: the template escapes it, and the page's policy of
content allows no other program than its own.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studiogan_guidance import __version__
from studiogan_guidance.errors import UserError, typed
from studiogan_guidance.evaluation import page_contents, pictures, results
from studiogan_guidance.files import regular_file, replacing

Row = Mapping[str, Any]

MOST_BYTES = 2**26  # of a file that is read
SIDE = 96  # pixels of an image on the page, at least
LARGEST = 128  # and at most
COMMAND = "command.txt"
KINDS = ("tuned.json", "compare.json", "table.csv")  # what searches, comparisons and sweeps leave behind


@dataclass(frozen=True)
class Images:
    """Images below each other as one picture, with its size on the page in pixels."""

    source: str
    caption: str
    width: int
    height: int
    count: int


def write(folder: Path, path: Path) -> None:
    """Write the page of a folder.

    Args:
        folder: of a sweep, a comparison or a search; of several, the last one. Of other results the rows of the last
            protocol are shown.
        path: of the page.

    Raises:
        UserError: no folder, nothing in it that can be shown, or a page that cannot be written.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give the one of a sweep, a comparison or a search")
    text = html(folder)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def html(folder: Path) -> str:
    """The page of a folder as text; see ``write``."""
    # What was made last.
    found = [folder / name for name in KINDS if (folder / name).is_file()]
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    rows: list[Row] = list(results.by_identity(folder / results.FILE).values())
    result = None if newest is None or newest.suffix == ".csv" else _json(newest)
    if not rows and result is None:
        raise UserError(f"no results in {folder}: give the folder of a sweep, a comparison or a search")

    # What it says.
    try:
        if result is None:
            rows = _alike(rows)
            content = page_contents.of_sweep(rows)
        elif "trials" in result:
            content = page_contents.of_choice(result, rows)
        elif "searched" in result:
            content = page_contents.of_search(result, rows)
        else:
            content = page_contents.of_comparison(result)
            rows = [row for row in rows if _is_of(row, result)]
        facts = _facts(rows, result)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        source = newest or folder / results.FILE
        raise UserError(f"cannot read {source} ({typed(error)}): measure again, by the same command") from error
    strip = None if result else pictures.read_strip(folder / "strip.png")
    return _rendered(content, facts, _images(strip) if strip else [], _command(folder))


def _json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; UserError if that is no mapping."""
    if regular_file(path, "the result").stat().st_size > MOST_BYTES:
        raise UserError(f"cannot read {path}: it is larger than any result")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: it is no JSON; measure again, by the same command") from error
    if not isinstance(value, dict):
        raise UserError(f"cannot read {path}: it holds no result; measure again, by the same command")
    return value


def _command(folder: Path) -> str:
    """The command that made the results of a folder, or nothing."""
    path = folder / COMMAND
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        return ""
    return path.read_text(encoding="utf-8", errors="replace").strip()


def _alike(rows: Sequence[Row]) -> list[Row]:
    """The rows of the protocol, generator and maths of the last one, which may stand in one table."""

    def facts(row: Row) -> Any:
        return row["protocol"], row["generator"].get("sha256"), results.maths(row)

    return [row for row in rows if facts(row) == facts(rows[-1])]


def _is_of(row: Row, result: Mapping[str, Any]) -> bool:
    """Whether a row is part of a comparison, as far as its protocol tells."""
    rest = {key: value for key, value in row["protocol"].items() if key != "seed"}
    return rest == {key: value for key, value in result["protocol"].items() if key != "seed"}


def _facts(rows: Sequence[Row], result: Mapping[str, Any] | None) -> dict[str, dict[str, str]]:
    """Tables of two columns: the protocol, the generator, versions and machine."""
    protocol = {**_together(rows, "protocol"), **(result or {}).get("protocol", {})}
    records = rows or (result or {}).get("rows", [])
    times = sorted(str(row["time"]) for row in rows if row.get("time"))
    machine = _together(rows, "environment")
    if times:
        machine["measured"] = " to ".join(dict.fromkeys([times[0], times[-1]]))
    groups = {"Protocol": protocol, "Generator": _together(records, "generator"), "Versions and machine": machine}
    return {
        name: {key: _fact(value) for key, value in facts.items() if value not in ("", None)}
        for name, facts in groups.items()
        if facts
    }


def _together(rows: Sequence[Row], part: str) -> dict[str, Any]:
    """The values of each key of a part over all rows; several are listed."""
    values: dict[str, dict[str, None]] = {}
    for row in rows:
        for key, value in (row.get(part) or {}).items():
            values.setdefault(key, {})[_fact(value)] = None
    return {key: ", ".join(each) for key, each in values.items()}


def _fact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _images(strip: pictures.Strip) -> list[Images]:
    """The columns of a strip, small images enlarged by whole numbers, large ones made smaller."""
    found = []
    for column, caption in zip(strip.columns, strip.captions):
        height, width = column.shape[:2]
        shown = max(1, math.ceil(SIDE / width))
        if width > LARGEST:
            column = _smaller(column, LARGEST / width)
            height, width = column.shape[:2]
        count = round(height / width)
        found.append(Images(_source(column), caption, width * shown, height * shown, count))
    return found


def _smaller(picture: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    from PIL import Image

    height, width = picture.shape[:2]
    size = (round(width * factor), round(height * factor))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def _source(picture: NDArray[np.uint8]) -> str:
    """A picture as the address of an image that is its own content."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _rendered(
    content: page_contents.Content, facts: Mapping[str, Mapping[str, str]], images: Sequence[Images], command: str
) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    parts = {name: (files(__package__) / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return template.from_string(parts["html"]).render(
        content=content,
        charts=[(Markup(picture.svg), picture.caption) for picture in content.charts],
        facts=facts,
        images=images,
        command=command,
        version=__version__,
        css=Markup(parts["css"]),
        js=Markup(parts["js"]),
        digest=script_digest(parts["js"]),
    )


def script_digest(program: str) -> str:
    """What a page's policy of content names a program by that it allows."""
    return base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()
