"""Draws the recipe of the demo as a graph: python docs/pictures.py; docs/recording.py draws a routed batch.

A box is a step, with its number of repetitions; an arrow leads to a step that reads what another wrote.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from flexswitch.recipes.graph import Graph
from flexswitch.recipes.prepared import read_graph

DOCS = Path(__file__).resolve().parent
_STEP = 1.9  # inches from one column to the next


def places(graph: Graph) -> dict[str, tuple[int, float]]:
    """Returns the column and row of each step of a recipe: the column is the longest way to it.

    Every other column is a little lower, so that no arrow passes behind a box.
    """
    steps, depth = graph.plan.steps, [0] * len(graph.plan.steps)
    for number in graph.order:
        depth[number] = max((depth[each] + 1 for each in graph.before[number]), default=0)
    columns = {steps[number].template: depth[number] for number in graph.order}
    rows: Counter[int] = Counter()
    found = {}
    for template, column in columns.items():
        found[template] = (column, rows[column] + 0.4 * (column % 2))
        rows[column] += 1
    return found


def draw_recipe(recipe: Path, picture: Path) -> None:
    """Writes an SVG of a recipe's steps."""
    import matplotlib
    from matplotlib.figure import Figure

    graph = read_graph(recipe)
    steps, at = graph.plan.steps, places(graph)
    repeated = Counter(step.template for step in steps)
    commands = {step.template: step.command for step in steps}
    width, height = (1 + max(place[axis] for place in at.values()) for axis in (0, 1))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "flexswitch"}):
        figure = Figure(figsize=(_STEP * width, 0.6 * height + 0.3), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(height - 0.4, -0.5)
        arrows = {
            (steps[each].template, steps[number].template)
            for number, earlier in enumerate(graph.before)
            for each in earlier
        }
        for start, end in sorted(arrows):
            axes.annotate("", at[end], at[start], zorder=1, arrowprops={
                "arrowstyle": "-|>", "color": "0.5", "shrinkA": 40, "shrinkB": 40})  # fmt: skip
        for template, place in at.items():
            times = f" × {repeated[template]}" if repeated[template] > 1 else ""
            axes.annotate(commands[template] + times, place, ha="center", va="center", zorder=2, bbox={
                "boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": "0.3"})  # fmt: skip
        figure.savefig(picture, format="svg", metadata={"Date": None, "Creator": None})


def draw_routed(routed: dict[str, Any], picture: Path) -> None:
    """Writes an SVG of a routed batch: what `flexswitch route --json` says, `own` tasks and `pixels`."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    tasks, samples = sorted(set(routed["own"])), routed["samples"]
    weights = [[sample["weights"].get(task, 0.0) for sample in samples] for task in tasks]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "flexswitch"}):
        figure = Figure(figsize=(0.42 * len(samples) + 1.2, 0.36 * len(tasks) + 0.7), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xlim(-0.5, len(samples) - 0.5)
        axes.set_ylim(len(tasks) - 0.5, -2.1)
        axes.set_yticks(range(len(tasks)), tasks)
        axes.set_xticks([])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        for number, (own, image) in enumerate(zip(routed["own"], routed["pixels"], strict=True)):
            extent = (number - 0.42, number + 0.42, -0.7, -1.9)
            axes.imshow(image[0], cmap="gray", extent=extent, aspect="auto")
            place = (number - 0.5, tasks.index(own) - 0.5)
            axes.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor="0.2", linewidth=1.2))
        figure.savefig(picture, format="svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    draw_recipe(DOCS.parent / "recipes" / "digits.yaml", DOCS / "recipe.svg")
