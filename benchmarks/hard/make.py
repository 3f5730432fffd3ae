"""Makes the hard pairs: fine-tunes whose weights moved far, and published ones that PyPI packages carry.

    pip download torchani==2.0 chgnet==0.4.2 --no-deps -d WHEELS
    python benchmarks/hard/make.py --data DIR --out OUT --wheels WHEELS [--suites NAME...]

DIR holds the eight text tasks of benchmarks/text8/run.py. Each suite becomes a folder: `OUT/text8`,
`OUT/digits`, `OUT/ani` and `OUT/chgnet`, with `base` and one folder a task; the last two need WHEELS, of
which they take the weights. What exists is not made again.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from wheels import make_ani, make_chgnet

ROOT = HERE.parents[1]
SUITES = ("text8", "digits", "ani", "chgnet")
WHEELS = {"ani": ("torchani-2.0-*.whl", make_ani), "chgnet": ("chgnet-0.4.2-*.whl", make_chgnet)}


def train(script: str, out: Path, *options: str) -> None:
    """Runs a training script of the repository."""
    subprocess.run([sys.executable, str(ROOT / script), "--out", str(out), *options], check=True)


def unpack(suite: str, wheels: Path | None, out: Path) -> None:
    """Makes a suite of the weights in a package's wheel."""
    pattern, make = WHEELS[suite]
    found = sorted((wheels or Path()).glob(pattern))
    if wheels is None or not found:
        raise SystemExit(f"{suite}: give --wheels, a folder with {pattern}, as pip download gets it")
    if not out.exists():
        make(found[0], out)
    print(f"{out} is complete", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of <task>.<split>.jsonl.gz files")
    parser.add_argument("--out", type=Path, required=True, help="where the suites go")
    parser.add_argument("--wheels", type=Path, help="folder of the downloaded wheels")
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=SUITES)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for suite in options.suites:
        if suite == "text8":
            train("benchmarks/text8/train.py", options.out / suite, "--data", str(options.data), "--hard")
        elif suite == "digits":
            train("examples/digits/train.py", options.out / suite)
        else:
            unpack(suite, options.wheels, options.out / suite)


if __name__ == "__main__":
    main()
