"""Draws charts: as PNG files, and as text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from charts import Chart, Panel, all_charts
from results import Results
from workloads import ALONE, HAPROXY, KERNEL, NGINX, NGINX_KEEPALIVE, NODE_SOCKETIO, NODE_STICKY, OURS, PLAIN, SIMPLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of Okabe and Ito's palette, which colour-blind people can tell apart. A server has one colour everywhere.
COLOURS = {
    OURS: "#0072B2",
    KERNEL: "#56B4E9",
    PLAIN: "#D55E00",
    ALONE: "#D55E00",
    SIMPLE: "#CC79A7",
    NGINX: "#A6D8C7",
    NGINX_KEEPALIVE: "#009E73",
    HAPROXY: "#E69F00",
    NODE_STICKY: "#999999",
    NODE_SOCKETIO: "#555555",
}
PARTS = ("#D55E00", "#0072B2", "#BBBBBB")

WIDTH = 40
# A bar that ends within a character.
EIGHTHS = " ▏▎▍▌▋▊▉"


def number(value: float) -> str:
    """A value with three digits that mean something, at least."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def bar(value: float, most: float) -> str:
    """A bar of text, of at most :data:`WIDTH` characters."""
    eighths = round(8 * WIDTH * value / most) if most else 0
    return ("█" * (eighths // 8) + EIGHTHS[eighths % 8]).rstrip()


def text_of(panel: Panel) -> str:
    """A panel as lines of text: a bar for each value."""
    rows = [
        (", ".join(part for part in (server, label) if part), value)
        for server, values in panel.values.items()
        for label, value in zip(panel.labels, values, strict=True)
        if value is not None
    ]
    most = max((value for _, value in rows), default=0)
    names = max((len(name) for name, _ in rows), default=0)
    figures = max((len(number(value)) for _, value in rows), default=0)
    lines = [f"{name:{names}} {number(value):>{figures}} {bar(value, most)}".rstrip() for name, value in rows]
    return "\n".join([f"{panel.title}, {panel.unit}", *lines])


def text(chart: Chart) -> str:
    """A chart as a block of text in Markdown."""
    return "```text\n" + "\n\n".join(text_of(panel) for panel in chart.panels) + "\n```"


def draw_all(results: Results, folder: Path) -> None:
    """Write the PNG file of every chart to a folder."""
    for chart in all_charts(results):
        draw(chart, folder / f"{chart.file}.png")


def draw(chart: Chart, path: Path) -> None:
    """Write the PNG file of a chart. The same values give the same file, of some ten kilobytes."""
    # Whoever only prints needs none of these.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    # Bars are as thick in a panel with few of them.
    bars = max(len(panel.values) * (1 if chart.stacked else len(panel.labels)) for panel in chart.panels)
    height = 2.9 if chart.across else 1.0 + 0.24 * bars
    columns = min(3, len(chart.panels))
    lines = -(-len(chart.panels) // columns)
    figure = Figure(figsize=(4.2 * columns, height * lines + 0.4), dpi=80, layout="constrained")
    figure.suptitle(chart.title)
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis, panel in zip(axes, chart.panels, strict=False):
        if chart.across:
            _lines(axis, panel, chart.across)
        elif chart.stacked:
            _stacks(axis, panel, bars)
        else:
            _bars(axis, panel, bars, chart.log)
        axis.set_title(panel.title, fontsize=10)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(chart.panels) :]:
        axis.set_visible(False)
    if chart.across or chart.stacked:
        handles = {}
        for axis in axes:
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
                handles[label] = handle
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.frombytes("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")
    # What has few colours anyway needs no more than a byte for each point.
    picture.quantize(64).save(path, optimize=True)


def _bars(axis: Axes, panel: Panel, room: int, log: bool) -> None:
    """Horizontal bars, the first on top, each with its value, where there is room for more."""
    rows = [
        (", ".join(part for part in (server, label) if part), value, COLOURS[server])
        for server, values in panel.values.items()
        for label, value in zip(panel.labels, values, strict=True)
        if value is not None
    ]
    names, values, colours = zip(*rows, strict=True)
    places = range(len(rows))
    bars = axis.barh(places, values, color=colours)
    axis.bar_label(bars, [number(value) for value in values], padding=2, fontsize=8)
    axis.set_yticks(places, names)
    axis.set_ylim(room - 0.5, -0.5)
    axis.set_xlabel(panel.unit, fontsize=8)
    if log:
        axis.set_xscale("log")
    axis.margins(x=0.18)


def _stacks(axis: Axes, panel: Panel, room: int) -> None:
    """Horizontal bars of parts."""
    names = list(panel.values)
    places = range(len(names))
    left = [0.0] * len(names)
    for index, (label, colour) in enumerate(zip(panel.labels, PARTS, strict=True)):
        widths = [values[index] or 0.0 for values in panel.values.values()]
        bars = axis.barh(places, widths, left=left, color=colour, label=label)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axis.bar_label(bars, [number(value) for value in left], padding=2, fontsize=8)
    axis.set_yticks(places, names)
    axis.set_ylim(room - 0.5, -0.5)
    axis.set_xlabel(panel.unit, fontsize=8)
    axis.margins(x=0.18)


def _lines(axis: Axes, panel: Panel, across: str) -> None:
    """A line for each server."""
    for server, values in panel.values.items():
        axis.plot(panel.labels, values, marker="o", color=COLOURS[server], label=server)
    most = max(value for values in panel.values.values() for value in values if value is not None)
    axis.set_ylim(0, 1.1 * most)
    axis.set_xlabel(across, fontsize=8)
    axis.set_ylabel(panel.unit, fontsize=8)
    axis.grid(axis="y", alpha=0.3)
