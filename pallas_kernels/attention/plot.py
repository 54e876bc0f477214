"""A picture of what the bench measured, as SVG: no library is needed to draw or to look at it."""

import html
import math
from collections.abc import Mapping
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 860, 420, 60, 50, 30, 250
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")
PARTS = {"forward": "", "both": ' stroke-dasharray="6 3"'}


def speedups(result: Mapping[str, Any]) -> str:
    """Draws how many times faster than dense attention each attention is, against density.

    Both axes are logarithmic; dashed lines are forward and backward pass together, the grey one is
    what the number of blocks alone would give.

    Args:
        result: What `bench.run` returns.

    Returns:
        The text of an SVG file.
    """
    lines = _lines(result["rows"])
    points = [point for line in lines.values() for point in line]
    least = min((density for density, _ in points), default=0.1)
    least = min(least, 0.5)
    top = max([1 / least, *(gain for _, gain in points)])
    bottom = min([1.0, *(gain for _, gain in points)])

    def place(density: float, gain: float) -> str:
        along = math.log(density) / math.log(least)
        up = math.log(gain / bottom) / math.log(top / bottom)
        x = LEFT + along * (WIDTH - LEFT - RIGHT)
        return f"{x:.1f},{HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP):.1f}"

    def line(along: list[tuple[float, float]], colour: str, rest: str = "") -> str:
        where = " ".join(place(*point) for point in along)
        return f'<polyline points="{where}" fill="none" stroke="{colour}"{rest}/>'

    def note(where: str, words: str, rest: str = "") -> str:
        x, y = where.split(",")
        return f'<text x="{x}" y="{y}"{rest}>{html.escape(words)}</text>'

    drawn = [line([(1.0, 1.0), (least, 1 / least)], "#bbb")]
    for density in sorted({density for density, _ in points} | {1.0}):
        x, _ = place(density, 1.0).split(",")
        drawn.append(note(f"{x},{HEIGHT - BOTTOM + 18}", f"{density:.2g}"))
    for gain in (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0):
        if bottom <= gain <= top:
            _, y = place(1.0, gain).split(",")
            drawn.append(note(f"{LEFT - 34},{y}", f"{gain:g}x"))
            drawn.append(line([(1.0, gain), (least, gain)], "#eee"))
    names = dict.fromkeys(name for name, _ in lines)
    for index, name in enumerate(names):
        colour = COLOURS[index % len(COLOURS)]
        for part, style in PARTS.items():
            drawn.append(line(sorted(lines[name, part]), colour, style))
        where = f"{WIDTH - RIGHT + 12},{TOP + 16 * index}"
        drawn.append(note(where, name, f' fill="{colour}"'))
    title = f"times faster than dense attention, against density; {result['device']}"
    drawn.append(note(f"{LEFT},{TOP - 12}", title))
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
    return "\n".join([f'{start}font-family="sans-serif" font-size="12">', *drawn, "</svg>", ""])


def _lines(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Returns density and gain of each attention of a shape and block, for each of the passes."""
    dense: dict[tuple[str, int], dict[str, Any]] = {}
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        key = row["shape"], row["block"]
        if key not in dense:  # the first row of each is dense attention
            dense[key] = row
            continue
        for part in PARTS:
            gain = dense[key][f"{part}_s"] / row[f"{part}_s"]
            name = f"{row['shape']}, {row['attention']} {row['block']}"
            found.setdefault((name, part), []).append((row["density"], gain))
    return found
