"""The wheel and the editable install hold the whole package, and leave the standard library's codecs alone."""

import codecs
import zipfile
from pathlib import Path

import pytest
from support.installing import ROOT, Environment, build, copy_sources

IMPORTED = """
import codecs, flexswitch, flexswitch.cli.main, flexswitch.codecs.errors
print(codecs.__file__)
print(flexswitch.__file__)
print(flexswitch.FlexswitchError.__module__)
"""
USED = """
import flexswitch
import torch
from safetensors.torch import save_file

base = {"layer.weight": torch.zeros(32, 32)}
save_file(base, "base.safetensors")
save_file({"layer.weight": torch.linspace(-1, 1, 1024).reshape(32, 32)}, "red.safetensors")
artifact = flexswitch.compress("red.safetensors", "red.fsw", base="base.safetensors", settings={"drop": 0.9})
restored = flexswitch.restore("base.safetensors", artifact)
print(int((restored["layer.weight"] != 0).sum()))
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("sources") / "flexswitch")


@pytest.fixture(scope="module")
def wheel(sources: Path) -> Path:
    return build(sources, "build_wheel")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("installed") / "environment", wheel)


@pytest.fixture(scope="module")
def editable(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("editable") / "environment", build(sources, "build_editable"))


def test_the_wheel_holds_every_module_and_the_files_beside_them(wheel: Path) -> None:
    kept = {"api": "", "cli": "cli/", "codecs": "codecs/", "merging": "merging/", "recipes": "recipes/"}
    expected = {
        f"flexswitch/{prefix}{path.relative_to(ROOT / folder).as_posix()}"
        for folder, prefix in kept.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md", ".yaml", ".typed")
    }
    assert {"flexswitch/py.typed", "flexswitch/codecs/format/FORMAT.md"} < expected
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if name.startswith("flexswitch/")} == expected


@pytest.mark.deep
def test_an_installed_wheel_compresses_and_restores(installed: Environment, tmp_path: Path) -> None:
    assert "compress" in installed.run("flexswitch", "--help", cwd=tmp_path)
    assert installed.run("python", "-c", USED, cwd=tmp_path) == "102\n"


@pytest.mark.parametrize("place", ["elsewhere", "root", "root on PYTHONPATH"])
@pytest.mark.parametrize("kind", ["installed", "editable"])
def test_the_package_is_found_and_the_standard_codecs_too(
    kind: str, place: str, sources: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    environment = request.getfixturevalue(kind)
    variables = {"PYTHONPATH": "."} if place == "root on PYTHONPATH" else {}
    cwd = tmp_path if place == "elsewhere" else sources
    standard, package, home = environment.run("python", "-c", IMPORTED, cwd=cwd, **variables).splitlines()
    assert Path(standard).name == Path(codecs.__file__).name
    assert "site-packages" not in standard
    assert str(sources) not in standard
    assert (str(sources / "api") in package) == (kind == "editable")
    assert home == "flexswitch.codecs.errors"


def test_an_editable_install_sees_a_new_room_at_once(editable: Environment, sources: Path) -> None:
    room = sources / "merging" / "added"
    room.mkdir()
    (room / "module.py").write_text('"""Added after the install."""\n')
    code = "import flexswitch.merging.added.module as module; print(module.__doc__)"
    assert editable.run("python", "-c", code, cwd=sources) == "Added after the install.\n"
