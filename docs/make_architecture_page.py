"""Draw docs/architecture.svg and fill the table of docs/architecture.md from the imports of the package.

Run `python docs/make_architecture_page.py` after a room, its first line or an import between rooms has changed.
"""

from __future__ import annotations

import ast
import math
import re
import textwrap
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[1] / "prefopt"
PAGE = Path(__file__).with_name("architecture.md")
PICTURE = PAGE.with_suffix(".svg")
TABLE = re.compile(r"(?<=<!-- rooms -->\n).*?(?=<!-- end of rooms -->)", re.DOTALL)

Edges = Mapping[str, frozenset[str]]
"""Room -> the rooms that it imports from."""

EVERYONES = frozenset({"errors", "words"})
"""Rooms that any other may import; arrows to them would say nothing."""


def room_of(path: Path) -> str:
    """Return the room that a file of the package belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def files() -> list[Path]:
    """Return the files of all rooms; the doors of the package itself are none."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if room_of(path) not in ("__init__", "__main__")]


def duties() -> dict[str, str]:
    """Return every room, a folder or a file in the hall, with the first sentence of its docstring."""
    return {name: _duty(_door(name)) for name in dict.fromkeys(map(room_of, files()))}


def imports() -> Edges:
    """Return which rooms each room imports from, imports for the type checker included."""
    found: dict[str, set[str]] = {}
    for path in files():
        here = found.setdefault(room_of(path), set())
        here.update(_rooms_in(ast.parse(path.read_text(encoding="utf-8"))))
        here.discard(room_of(path))
    return {name: frozenset(others) for name, others in found.items()}


def floors(edges: Edges) -> list[list[str]]:
    """Put every room on the lowest floor that lies above all that it imports from.

    ``a`` imports nothing, ``b`` imports ``a``, ``c`` imports both: [[a], [b], [c]].
    """
    height: dict[str, int] = {}

    def height_of(name: str) -> int:
        if name not in height:
            height[name] = max((height_of(other) + 1 for other in edges[name]), default=0)
        return height[name]

    count = max(map(height_of, edges)) + 1
    return [sorted(name for name in edges if height[name] == floor) for floor in range(count)]


def raised(rows: list[list[str]], edges: Edges) -> list[list[str]]:
    """Move every room but those on the ground up to just below the lowest that imports it, for short arrows.

    ``d`` on the third floor imports ``c`` on the ground and ``b`` on the first: ``b`` moves to the second.
    """
    height = {name: floor for floor, row in enumerate(rows) for name in row}
    for row in reversed(rows[1:-1]):
        for name in row:
            above = [height[other] for other in edges if name in edges[other]]
            height[name] = min(above, default=height[name] + 1) - 1
    return [sorted(name for name in edges if height[name] == floor) for floor in range(len(rows))]


def reduced(edges: Edges) -> Edges:
    """Leave out every arrow that a longer way says as well.

    ``c -> a`` goes where there are ``c -> b`` and ``b -> a``.
    """

    def reach(name: str) -> set[str]:
        return {name}.union(*(reach(other) for other in edges[name]))

    return {
        name: frozenset(
            other for other in others if not any(other in reach(each) for each in others - {other})
        )
        for name, others in edges.items()
    }


def table() -> str:
    """Return the rows of the page's table, from the ground up."""
    known = duties()
    names = [name for floor in floors(imports()) for name in floor]
    lines = [f"| [{name}]({_link(name)}) | {known[name]} |" for name in names]
    return "\n".join(["| room | duty |", "| --- | --- |", *lines, ""])


def page() -> str:
    """Return the page with its table written anew."""
    return TABLE.sub(lambda _: table(), PAGE.read_text(encoding="utf-8"))


def _door(name: str) -> Path:
    folder = PACKAGE / name / "__init__.py"
    return folder if folder.is_file() else PACKAGE / f"{name}.py"


def _link(name: str) -> str:
    door = _door(name)
    return f"../prefopt/{name}" if door.name == "__init__.py" else f"../prefopt/{name}.py"


def _duty(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ").replace("``", "`")


def _rooms_in(tree: ast.AST) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "prefopt":
            names = [f"prefopt.{alias.name}" for alias in node.names]
        else:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            if name.startswith("prefopt.") and not name.split(".")[1].startswith("__"):
                yield name.split(".")[1]


# -- the picture ----------------------------------------------------------------------------------

WIDTH, BOX, GAP, LINE = 980, 218, 22, 15
HEAD, FOOT, AISLE = 24, 8, 46

STYLE = """\
<style>
  rect { fill: #f6f8fa; stroke: #57606a; rx: 6 }
  text { font: 11px -apple-system, Segoe UI, Helvetica, Arial, sans-serif; fill: #24292f }
  .name { font-weight: 600; font-size: 14px }
  path { fill: none; stroke: #8c959f; stroke-width: 1.2; marker-end: url(#tip) }
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
  <path d="M0 0 L8 4 L0 8" style="marker-end: none"/></marker></defs>"""


class Box(NamedTuple):
    """Where a room stands in the picture, in pixels."""

    left: float
    top: float
    height: float
    lines: list[str]

    @property
    def middle(self) -> float:
        return self.left + BOX / 2


def picture() -> str:
    """Return the picture: rooms by floor, the ground at the bottom, arrows to what is imported."""
    edges = {name: others - EVERYONES for name, others in reduced(imports()).items()}
    boxes, height = _boxes(_ordered(raised(floors(imports()), edges), edges), duties())
    arrows = [_arrow(boxes[name], boxes[other]) for name in sorted(edges) for other in sorted(edges[name])]
    drawn = [part for name in sorted(boxes) for part in _box(name, boxes[name])]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'role="img" aria-label="The rooms of prefopt and what they import">'
    )
    ground = f'<rect width="{WIDTH}" height="{height:.0f}" style="fill: white; stroke: none"/>'
    return "\n".join([head, STYLE, ground, *arrows, *drawn, "</svg>", ""])


def _ordered(rows: list[list[str]], edges: Edges) -> list[list[str]]:
    """Put rooms above the middle of what they import, so that arrows cross less."""
    place: dict[str, float] = {}
    ordered: list[list[str]] = []

    def wish(name: str) -> tuple[float, str]:
        below = [place[other] for other in edges[name]]
        # added up exactly, as sets have no order of their own
        return (math.fsum(below) / len(below) if below else 0.5, name)

    for row in rows:
        ordered.append(sorted(row, key=wish))
        place |= {name: (at + 0.5) / len(row) for at, name in enumerate(ordered[-1])}
    return ordered


def _boxes(rows: list[list[str]], known: Mapping[str, str]) -> tuple[dict[str, Box], float]:
    boxes: dict[str, Box] = {}
    top = float(GAP)
    for row in reversed(rows):
        texts = {name: textwrap.wrap(known[name].replace("`", ""), 34) for name in row}
        height = HEAD + LINE * max(map(len, texts.values())) + FOOT
        left = (WIDTH - len(row) * (BOX + GAP) + GAP) / 2
        for at, name in enumerate(row):
            boxes[name] = Box(left + at * (BOX + GAP), top, height, texts[name])
        top += height + AISLE
    return boxes, top - AISLE + GAP


def _arrow(upper: Box, lower: Box) -> str:
    start, end = upper.top + upper.height, lower.top
    # leave and arrive nearer to where the other room stands
    shift = max(-1.0, min(1.0, (lower.middle - upper.middle) / WIDTH * 3)) * BOX / 3
    x, y = upper.middle + shift, lower.middle - shift
    bend = min(AISLE, (end - start) / 2)
    return f'<path d="M{x:.0f} {start:.0f} C{x:.0f} {start + bend:.0f} {y:.0f} {end - bend:.0f} {y:.0f} {end:.0f}"/>'


def _box(name: str, box: Box) -> list[str]:
    x = box.left + 9
    lines = [
        f'<rect x="{box.left:.0f}" y="{box.top:.0f}" width="{BOX}" height="{box.height:.0f}"/>',
        f'<text class="name" x="{x:.0f}" y="{box.top + 19:.0f}">{name}</text>',
    ]
    first = box.top + HEAD + LINE - 3
    return lines + [
        f'<text x="{x:.0f}" y="{first + at * LINE:.0f}">{escape(text)}</text>'
        for at, text in enumerate(box.lines)
    ]


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
