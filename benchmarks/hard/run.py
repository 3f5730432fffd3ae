"""Compares FlexSwitch with the field's other compressors on hard pairs, and writes docs/benchmarks.md.

    python benchmarks/hard/run.py --models OUT --data DIR

OUT and DIR are those of benchmarks/hard/make.py. Each result is kept in --cache; --suites, --tasks, --methods
and --sizes say what is measured now, and the section has all that is kept. Processes that measure different
tasks may share a cache.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "flex_switch")]

from cells import at_size, cell, pair, searched
from measure import FIXED, SEARCHED
from report import write_section
from suites import KINDS, Suite
from tables import OURS, introduction, section

from flexswitch.merging.methods.registry import method_names

SIZES = (0.05, 0.1, 0.2, 0.5, 1.0)  # bits per parameter, of whole files
TRAINED_SIZES = {"text8": (0.05, 0.1)}  # FlexSwitch's, where a training takes minutes


class Plan(NamedTuple):
    """What is measured: methods and sizes; without sizes, those that each method has by default."""

    methods: list[str]
    sizes: tuple[float, ...] | None
    steps: int

    def of(self, method: str, suite: Suite) -> tuple[float, ...]:
        """Returns the sizes of a method in bits per parameter."""
        if self.sizes is not None:
            return self.sizes
        return TRAINED_SIZES.get(suite.name, SIZES) if method == "flexswitch" else SIZES


def rivals() -> list[str]:
    """Returns the rivals that this version of flexswitch knows."""
    known = method_names("compression")
    return [name for name in (*SEARCHED, *FIXED) if name in known]


def measure(suite: Suite, task: str, plan: Plan) -> None:
    """Measures a task by all methods of the plan; what is kept is not measured again."""
    for method in plan.methods:
        if method in FIXED:
            for settings in FIXED[method]:
                cell(suite, task, method, settings)
            continue
        for bits in plan.of(method, suite):
            if method in SEARCHED:
                searched(suite, task, method, bits)
            elif method == "data-free":
                at_size(suite, task, method, bits, ("objective=none",))
            elif suite.kind.adapter is not None:  # FlexSwitch runs the models
                at_size(suite, task, method, bits, (*suite.kind.settings, f"steps={plan.steps}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of suites, as make.py writes it")
    parser.add_argument("--data", type=Path, required=True, help="folder of <task>.<split>.jsonl.gz files")
    parser.add_argument("--cache", type=Path, default=HERE / "cache")
    parser.add_argument("--suites", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--tasks", nargs="+", help="names of tasks [default: all]")
    parser.add_argument("--methods", nargs="+", choices=[*OURS, *rivals()], default=[*OURS, *rivals()])
    parser.add_argument("--sizes", nargs="+", type=float, help="bits per parameter [default: five]")
    parser.add_argument("--steps", type=int, default=100, help="FlexSwitch's training steps [default: 100]")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--no-report", action="store_true", help="measure, and leave docs/benchmarks.md")
    options = parser.parse_args()
    plan = Plan(options.methods, tuple(options.sizes) if options.sizes else None, options.steps)
    for name in options.suites:
        suite = Suite(name, options.models, options.data, options.cache, options.jobs)
        for task in suite.tasks:
            if options.tasks is None or task in options.tasks:
                pair(suite, task)
                measure(suite, task, plan)
    if not options.no_report:
        write_section("hard", introduction())
        for name in options.suites:
            if text := section(options.cache, name):
                write_section(f"hard-{name}", text)
                print(text)


if __name__ == "__main__":
    main()
