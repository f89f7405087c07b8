"""
Draw figures: ``python -m programs.plot FIGURES.json FOLDER``.

There are two pictures, each for light and for dark pages: costs relative to their floors, and
how costs grow with the number of sockets.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib import pyplot as plt

#: The rows of the table that are drawn as bars.
BARS: Final = (
    *("handshake-cpu", "memory", "idle-cpu", "echo-cpu"),
    *("broadcast-cpu", "close-one", "close-many", "shutdown"),
)
CURVES: Final = ("next-handshake-cpu", "broadcast-cpu", "close-one", "shutdown-cpu")
#: The peers that are drawn, each with a color of the theme.
WHO: Final = {
    "ours": "accent",
    "before": "before",
    "raw": "floor",
    "aiohttp": "floor",
    "predecessor": "other",
    "socketio": "other",
    "sio": "other",
    "channels": "other",
    "starlette": "other",
}
THEMES: Final = {
    "light": {
        **{"page": "#ffffff", "ink": "#1f2328", "grid": "#d8dee4", "accent": "#0969da"},
        **{"before": "#80ccff", "floor": "#8c959f", "other": "#d4a72c"},
    },
    "dark": {
        **{"page": "#0d1117", "ink": "#e6edf3", "grid": "#30363d", "accent": "#4493f8"},
        **{"before": "#1f4f8f", "floor": "#7d8590", "other": "#bb8009"},
    },
}
MOST: Final = 6.0  # times its floor; a longer bar is cut, and its label has the full ratio


class Figures:
    """
    The JSON of a run.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self.rows: dict[str, Any] = document["rows"]
        self.peers: dict[str, str] = document["peers"]
        self.sockets: int = document["plan"]["sockets"]
        self.summaries: list[dict[str, Any]] = document["summaries"]

    def ratios(self, row: str) -> dict[str, float]:
        """
        Return the ratios of a row, by peer.
        """
        return {
            one["peer"]: one["ratio"]
            for one in self.summaries
            if one["row"] == row and one["ratio"]
        }

    def curve(self, row: str, peer: str) -> list[tuple[int, float]]:
        """
        Return the numbers of sockets, each with the cost of a row for a peer.
        """
        return sorted(
            (one["size"], one["median"])
            for one in self.summaries
            if one["row"] == f"curve:{row}" and one["peer"] == peer
        )

    def title(self, row: str, n: str) -> str:
        """
        Return a row's title.
        """
        return str(self.rows[row]["title"]).format(n=n)


def bars(axes: Any, figures: Figures, row: str, theme: dict[str, str]) -> None:
    """
    Draw the ratios of a row as bars; the floor is at 1.
    """
    ratios = figures.ratios(row)
    who = [peer for peer in WHO if peer in ratios][::-1]
    names = [figures.peers[peer] for peer in who]
    lengths = [min(ratios[peer], MOST) for peer in who]
    axes.barh(names, lengths, color=[theme[WHO[peer]] for peer in who], height=0.7)
    for y, peer in enumerate(who):
        x = max(1.0, min(ratios[peer], MOST))  # beside the line of the floor
        axes.text(x + 0.07, y, f"{ratios[peer]:.2f}", va="center", color=theme["ink"], fontsize=8)
    axes.axvline(1, color=theme["ink"], linewidth=0.8)
    axes.set_xlim(0, MOST + 0.7)
    axes.set_xticks([])
    axes.set_title(figures.title(row, f"{figures.sockets:,}"), fontsize=9, loc="left")
    axes.tick_params(length=0, labelsize=8)
    for side in axes.spines.values():
        side.set_visible(False)


def curves(axes: Any, figures: Figures, row: str, theme: dict[str, str]) -> None:
    """
    Draw how the cost of a row grows with the number of sockets.
    """
    for peer, colour in WHO.items():
        points = figures.curve(row, peer)
        if len(points) > 1:
            sizes, costs = zip(*points, strict=True)
            style = {"raw": ":", "aiohttp": "--"}.get(peer, "-")
            label = figures.peers[peer]
            axes.plot(
                sizes, costs, style, marker="o", markersize=3, color=theme[colour], label=label
            )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.grid(color=theme["grid"], linewidth=0.6)
    axes.set_title(
        f"{figures.title(row, 'N')}, {figures.rows[row]['unit']}", fontsize=9, loc="left"
    )
    axes.tick_params(labelsize=8)


def draw(figures: Figures, rows: Sequence[str], panel: Any, name: str, path: Path) -> None:
    """
    Draw a panel for each row, in two columns, once for each theme.
    """
    for kind, theme in THEMES.items():
        ink = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color"), theme["ink"])
        ink |= {"ytick.color": theme["ink"], "axes.edgecolor": theme["grid"]}
        pages = dict.fromkeys(("figure.facecolor", "axes.facecolor"), theme["page"])
        with mpl.rc_context({**ink, **pages, "font.size": 9}):
            height = (len(rows) + 1) // 2 * 1.9
            figure, grid = plt.subplots(
                (len(rows) + 1) // 2, 2, figsize=(9, height), squeeze=False
            )
            for axes, row in zip(grid.flat, rows, strict=False):
                panel(axes, figures, row, theme)
            for axes in grid.flat[len(rows) :]:
                axes.set_visible(False)
            handles, labels = grid.flat[0].get_legend_handles_labels()
            figure.tight_layout(rect=(0, 0.05 if handles else 0, 1, 1))
            if handles:
                figure.legend(handles, labels, ncols=4, loc="lower center", frameon=False)
            figure.savefig(path / f"{name}-{kind}.png", dpi=150)
            plt.close(figure)


def main() -> None:
    """
    Draw the rows that the file has figures of.
    """
    source, folder = map(Path, sys.argv[1:])
    figures = Figures(json.loads(source.read_text()))
    rows = [row for row in BARS if figures.ratios(row)]
    if rows:
        draw(figures, rows, bars, "figures", folder)
    growing = [row for row in CURVES if len(figures.curve(row, "ours")) > 1]
    if growing:
        draw(figures, growing, curves, "scaling", folder)


if __name__ == "__main__":
    main()
