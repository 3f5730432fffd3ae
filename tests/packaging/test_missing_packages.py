"""Without an extra, every command that needs one of its packages says which, and keeps what is there."""

import sys
from pathlib import Path

import pytest
from support.commands import Runner
from support.doc_blocks import text_scene

EVAL = "pip install 'flexswitch[eval]'"
MODELS = f"running models needs transformers; {EVAL}"
BASE = ("--base", "models/base")
CASES = [
    ("transformers", f"index zoo {' '.join(BASE)} --exemplars data", MODELS),
    ("transformers", f"eval zoo {' '.join(BASE)} --data data", MODELS),
    (
        "transformers",
        f"compress models/sst2 {' '.join(BASE)} -o a.fsw --name sst2 --exemplars data --target-size 60%",
        MODELS,
    ),
    ("transformers", f"merge zoo {' '.join(BASE)} -o out --method regmean --exemplars data", MODELS),
    (
        "transformers",
        f"merge zoo {' '.join(BASE)} -o out --method ties --tune lambda=0.5,1 --data labelled",
        MODELS,
    ),
    ("transformers", f"route indexed {' '.join(BASE)} --input samples.jsonl", MODELS),
    *(
        (
            "transformers",
            f"export zoo {' '.join(BASE)} --task sst2 --to {form} -o out",
            f"an adapter needs transformers; {EVAL}",
        )
        for form in ("lora", "shira")
    ),
    ("sklearn", f"eval zoo {' '.join(BASE)} --data data", f"measuring needs scikit-learn; {EVAL}"),
    (
        "matplotlib",
        f"eval zoo {' '.join(BASE)} --data nothing --plot a.png",
        f"a.png: drawing needs matplotlib; {EVAL}",
    ),
    ("matplotlib", "index indexed --report a.png", f"a.png: drawing needs matplotlib; {EVAL}"),
    ("ray", "run zoo.yaml --on ray", "--on ray needs Ray: pip install 'flexswitch[ray]'"),
]
RECIPE = "version: 1\nsteps: [{name: verify, command: verify, inputs: [zoo]}]\n"
# What needs no extra works without one.
PLAIN = (
    "compress models/sst2 --base models/base -o a.fsw", "inspect zoo", "verify zoo --base models/base",
    "merge zoo --base models/base -o out --task sst2", "merge zoo --base models/base -o both --method ties",
    "extract models/base models/sst2 -o a.tv.safetensors", "methods", "run zoo.yaml", "pack a.fsw -o other",
    "export zoo --base models/base --task sst2 --to vllm-patch -o patch",
)  # fmt: skip


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models, their examples and a recipe."""
    folder = tmp_path_factory.mktemp("scene")
    text_scene(folder)
    (folder / "zoo.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def place(scene: Path, flexswitch: Runner, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The scene, made the current folder, with a zoo and an indexed one."""
    monkeypatch.chdir(scene)
    if not (scene / "indexed").exists():
        for task in ("sst2", "cola"):
            assert flexswitch("compress", f"models/{task}", *BASE, "-o", f"{task}.fsw").status == 0
        for zoo in ("zoo", "indexed"):
            assert flexswitch("pack", "sst2.fsw", "cola.fsw", "-o", zoo).status == 0
        assert (
            flexswitch("index", "indexed", *BASE, "--exemplars", "data", "--metric", "euclidean").status == 0
        )
    return scene


@pytest.mark.deep
@pytest.mark.parametrize(("package", "command", "message"), CASES)
def test_a_command_names_the_extra_that_it_needs(
    place: Path, flexswitch: Runner, monkeypatch: pytest.MonkeyPatch, package: str, command: str, message: str
) -> None:
    before = {*place.iterdir()}
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    outcome = flexswitch(*command.split())
    assert (outcome.status, outcome.error) == (1, message), outcome.err
    assert {*place.iterdir()} - before <= {place / "zoo.logs"}


@pytest.mark.deep
def test_what_needs_no_extra_runs_without_any(
    place: Path, flexswitch: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("transformers", "sklearn", "scipy", "matplotlib", "pyarrow", "ray"):
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)
    for command in PLAIN:
        outcome = flexswitch(*command.split())
        assert outcome.status == 0, f"{command}: {outcome.err}"
