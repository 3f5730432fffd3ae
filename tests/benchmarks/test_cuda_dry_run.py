"""The script of benchmarks/cuda, whose code runs on the CPU with small sizes where there is no GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.imports import ROOT

pytestmark = pytest.mark.deep


def run(output: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "benchmarks" / "cuda" / "run.py"
    return subprocess.run(
        [sys.executable, str(script), "-o", str(output), *options],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_check_passes_in_a_dry_run_which_writes_no_page(tmp_path):
    page = ROOT / "docs" / "benchmarks.md"
    before = page.read_bytes()
    found = run(tmp_path / "cuda.json", "--dry-run")
    checks = json.loads((tmp_path / "cuda.json").read_text())["checks"]
    assert [(name, each["reason"]) for name, each in checks.items() if each["status"] != "passed"] == []
    assert found.returncode == 0
    assert len(checks) == 11
    assert page.read_bytes() == before
    figures = {name: each["figures"] for name, each in checks.items()}
    assert figures["decode"]["tvq, matrices as bit planes"] == 18
    assert figures["restore"] == {"tensors, equal": 25}
    assert 0 < figures["switched model"]["torch, grouped, bfloat16, difference"] < 4e-2
    if importlib.util.find_spec("triton") is not None:
        assert figures["switched model"]["triton, fused, float32, difference"] < 1e-4
        assert figures["speed of switching, 64 tasks"]["triton, over the base"] > 0


def test_trouble_of_one_check_is_recorded_and_the_others_go_on(tmp_path):
    (tmp_path / "faiss.py").write_text("raise RuntimeError('an illegal memory access')\n")
    output = tmp_path / "cuda.json"
    found = run(output, "--dry-run", "--checks", "search", "restore", PYTHONPATH=str(tmp_path))
    checks = json.loads(output.read_text())["checks"]
    assert found.returncode == 1
    assert checks["search"]["status"] == "failed"
    assert checks["search"]["reason"] == "RuntimeError: an illegal memory access"
    assert checks["restore"]["status"] == "passed"


def test_without_a_device_it_says_so_and_writes_nothing(tmp_path):
    found = run(tmp_path / "cuda.json")
    assert (found.returncode, found.stdout, os.listdir(tmp_path)) == (1, "", [])
    assert found.stderr == "torch finds no CUDA device here; --dry-run runs the same code on the CPU\n"
