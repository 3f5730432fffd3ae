"""`merge --config`: mergekit's configurations merge as the options of `merge` that mean the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.checkpoints import message

from flexswitch.codecs.errors import FlexswitchError, InputError
from flexswitch.merging.commands.merge import merge
from flexswitch.merging.commands.merge_config import merge_config

HEAD = "models:\n- {model: a, parameters: {weight: 1.0}}\n- {model: b, parameters: {weight: 0.5}}\nbase_model: base\n"
BARE = "models: [{model: a}, {model: b}]\nbase_model: base\n"


def nested_aliases(levels: int) -> str:
    """Returns a list of ten lists of ten lists and so on, in a few letters."""
    text = "a"
    for level in range(levels):
        text = f"&{'abcdefghij'[level]} [{text}{f', *{chr(96 + level)}' * 9 if level else ''}]"
    return text


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes the models base, a and b of three layers."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    names = ["embed", *(f"layers.{layer}.{part}" for layer in range(3) for part in ("attn", "mlp"))]
    for model in ("base", "a", "b"):
        (tmp_path / model).mkdir()
        save_file(
            {name: generator.normal(size=(6, 4)).astype(np.float32) for name in names},
            tmp_path / model / "model.safetensors",
        )
        (tmp_path / model / "config.json").write_text(json.dumps({"num_hidden_layers": 3}))
    return tmp_path


def by_config(text: str) -> dict[str, np.ndarray]:
    Path("merge.yaml").write_text(text)
    merge_config("merge.yaml", "found", overwrite=True)
    return dict(load_file("found/model.safetensors"))


def by_options(*sources: str, **options: Any) -> dict[str, np.ndarray]:
    merge(list(sources), "expected", base="base", overwrite=True, **options)
    return dict(load_file("expected/model.safetensors"))


MEANING: list[tuple[str, dict[str, Any]]] = [
    (f"{HEAD}merge_method: ties\nparameters: {{density: 0.5, normalize: false, lambda: 0.7, int8_mask: true}}",
     {"method": "ties", "settings": {"scope": "tensor", "density": 0.5, "merge": "sum", "lambda": 0.7}, "weights": {"b": 0.5}}),
    (f"{HEAD}merge_method: task_arithmetic\nparameters: {{normalize: true, lambda: [0.1, 0.9]}}",
     {"method": "task-arithmetic", "settings": {"normalize": True, "lambda": "0.1,0.9"}, "weights": {"b": 0.5}}),
    (f"{HEAD}merge_method: breadcrumbs\nparameters: {{density: 0.5, gamma: 1e-1}}",
     {"method": "breadcrumbs", "settings": {"density": 0.5, "gamma": 0.1, "lambda": 1}, "weights": {"b": 0.5}}),
    (f"{HEAD}merge_method: della\nparameters: {{density: 0.5}}",
     {"method": "della", "settings": {"density": 0.5, "epsilon": 0.15, "rescale": "l1"}, "weights": {"b": 0.5}}),
    (f"{BARE}merge_method: sce\nparameters: {{select_topk: 0.5}}", {"method": "sce", "settings": {"density": 0.5}}),
    (f"{BARE}merge_method: model_stock\nparameters: {{filter_wise: false}}", {"method": "model-stock"}),
    (f"{BARE}merge_method: model_stock\nparameters: {{filter_wise: true}}", {"method": "model-stock", "settings": {"flatten": False}}),
    (f"{HEAD}merge_method: nuslerp\nparameters: {{nuslerp_row_wise: true, nuslerp_flatten: false}}",
     {"method": "nuslerp", "settings": {"flatten": False, "columns": True}, "weights": {"b": 0.5}}),
    (f"{HEAD}merge_method: nuslerp\nparameters: {{nuslerp_row_wise: true}}", {"method": "nuslerp", "weights": {"b": 0.5}}),
    (f"{BARE}merge_method: ramplus_tl\nparameters: {{r: 0.3}}", {"method": "ram-plus", "settings": {"r": 0.3}}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "options"), MEANING, ids=[each[1]["method"] for each in MEANING])
def test_a_configuration_means_these_options(folder: Path, text: str, options: dict[str, Any]) -> None:
    found, expected = by_config(text), by_options("a", "b", **options)
    assert all(np.array_equal(found[name], weights) for name, weights in expected.items())


def test_filters_and_gradients_give_each_tensor_its_value(folder: Path) -> None:
    found = by_config(
        "slices:\n- sources:\n  - {model: a, layer_range: [0, 3]}\n  - {model: b, layer_range: [0, 3]}\n"
        "merge_method: slerp\nbase_model: b\n"
        "parameters:\n  t:\n  - {filter: attn, value: [0, 1]}\n  - {filter: layers, value: 1.0}\n  - value: 0.0\n"
    )
    a, b = load_file("a/model.safetensors"), load_file("b/model.safetensors")
    for name in ("embed", "layers.0.attn"):
        np.testing.assert_allclose(found[name], b[name], atol=1e-6)
    for name in ("layers.0.mlp", "layers.2.mlp", "layers.2.attn"):
        np.testing.assert_allclose(found[name], a[name], atol=1e-6)


def test_models_without_a_base_are_merged_themselves(folder: Path) -> None:
    found = by_config(
        HEAD.replace("base_model: base\n", "merge_method: linear\nparameters: {normalize: false}\n")
    )
    a, b = load_file("a/model.safetensors"), load_file("b/model.safetensors")
    for name, weights in found.items():
        np.testing.assert_allclose(weights, a[name] + 0.5 * b[name], atol=1e-6)
    expected = by_options("a", "b", method="nuslerp", settings={"of": "models"}, weights={"a": 0.5, "b": 0.5})
    text = "models: [{model: a}, {model: b}]\nmerge_method: nuslerp\nparameters: {weight: 0.5}\n"
    for name, weights in by_config(text).items():
        np.testing.assert_allclose(weights, expected[name], atol=1e-6)


NAMES = ("x/checkpoint-3", "y/checkpoint", "z/checkpoint", "z/model (1)", "z/.hid", "z/a=b", "z/base")


def test_every_model_counts_whatever_the_names_of_their_folders(folder: Path) -> None:
    base = load_file("base/model.safetensors")
    for number, name in enumerate(NAMES, start=1):
        Path(name).mkdir(parents=True)
        state = {tensor: weights + np.float32(number) for tensor, weights in base.items()}
        save_file(state, f"{name}/model.safetensors")
    models = "".join(f"- {{model: {name}, parameters: {{weight: 1}}}}\n" for name in NAMES)
    found = by_config(f"models:\n{models}merge_method: linear\n")
    for tensor, weights in found.items():
        np.testing.assert_allclose(weights, base[tensor] + 4, atol=1e-5)
    found = by_config(
        "models: [{model: z/base}]\nbase_model: base\nmerge_method: slerp\nparameters: {t: 1}\n"
    )
    for tensor, weights in found.items():
        np.testing.assert_allclose(weights, base[tensor] + 7, atol=1e-5)


def test_a_filter_that_matches_nothing_changes_nothing(folder: Path, flexswitch: Any) -> None:
    text = f"{HEAD}merge_method: task_arithmetic\nparameters: {{lambda: [{{filter: lm_head, value: 3}}, {{value: 1}}]}}\n"
    found, expected = (
        by_config(text),
        by_options("a", "b", method="task-arithmetic", settings={"lambda": 1}, weights={"b": 0.5}),
    )
    assert all(np.array_equal(found[name], weights) for name, weights in expected.items())
    noted = flexswitch("merge", "--config", "merge.yaml", "-o", "noted").err
    assert "no tensor's name matches *lm_head*: its value of lambda has no effect" in noted


def test_tensors_of_another_shape_are_selected_by_options(folder: Path, flexswitch: Any) -> None:
    own = dict(load_file("a/model.safetensors"))
    save_file(own | {"embed": np.zeros((8, 4), np.float32)}, "a/model.safetensors")
    Path("merge.yaml").write_text(f"{HEAD}merge_method: task_arithmetic\n")
    command = ("merge", "--config", "merge.yaml", "--overwrite", "-o", "found")
    assert "with --on-resize rows, or keep the base's with --exclude 'embed'" in flexswitch(*command).error
    for options in (("--on-resize", "rows"), ("--exclude", "embed")):
        assert flexswitch(*command, *options).status == 0
        expected = by_options(
            "a", "b", method="task-arithmetic", settings={"lambda": 1}, weights={"b": 0.5},
            **{options[0][2:].replace("-", "_"): "rows" if options[1] == "rows" else ["embed"]},
        )  # fmt: skip
        found = load_file("found/model.safetensors")
        assert all(np.array_equal(found[name], weights) for name, weights in expected.items())
    Path("merge.yaml").write_text(f"{HEAD}merge_method: task_arithmetic\ntokenizer_source: union\n")
    assert flexswitch(*command, "--exclude", "embed").status == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{HEAD}merge_method: tis\n", "merge.yaml: no merge_method is named 'tis'; did you mean 'ties'?"),
        (f"{HEAD}merge_method: ties\nchat_template: auto\n", "merge.yaml: chat_template is not handled"),
        (f"{HEAD}merge_method: ties\ndtype: int8\n", "merge.yaml: dtype int8, expected one of float32"),
        (f"{HEAD}merge_method: ties\nparameters: {{rescale: true}}\n", "merge.yaml: rescale: true is not handled, only false"),
        (f"{HEAD}merge_method: ties\nparameters: {{densty: 0.5}}\n", "merge.yaml: no parameter handled for ties is named 'densty'"),
        (f"{HEAD}merge_method: ties\nparameters: {{density: [x: 1]}}\n", "merge.yaml: density: {'x': 1}: expected value"),
        (f"{BARE}merge_method: ties\n", "merge.yaml: model a: weight is missing"),
        ("models: [{model: a, parameters: {weight: [{filter: mlp, value: 2}]}}]\nbase_model: base\nmerge_method: ties\n",
         "merge.yaml: model a: weight has no value for tensors that no filter matches; end its list with - value: NUMBER"),
        (f"{BARE}merge_method: slerp\nparameters: {{t: [{{filter: mlp, value: 1}}]}}\n", "merge.yaml: parameters: t has no value for tensors"),
        (f"{HEAD}merge_method: ties\nmerge_method: sce\n", "merge.yaml: is not YAML (key 'merge_method' is repeated"),
        (f"{HEAD}merge_method: ties\nparameters: {{density: 1.5}}\n", "merge.yaml: setting density=1.5 of ties: expected"),
        ("models: [{model: a, parameters: {weight: 1, lambda: 0.5}}]\nbase_model: base\nmerge_method: task_arithmetic\n",
         "merge.yaml: lambda is the same for all models; move it from model a to the parameters of the merge"),
        (f"{BARE}merge_method: slerp\n", "merge.yaml: parameters: t is missing"),
        ("models: [{model: a}]\nmerge_method: sce\n", "merge.yaml: sce needs a base_model"),
        ("models: [{model: a, revision: 1}]\nmerge_method: sce\nbase_model: base\n", "merge.yaml: revision of model a is not handled"),
        ("slices: [{sources: [{model: a, layer_range: [0, 2]}]}]\nmerge_method: sce\nbase_model: base\n",
         "merge.yaml: slices: layer_range [0, 2] of a is not handled, only that of all layers, [0, 3]"),
        (f"slices: [{{sources: [{{model: {'a' * 300}}}]}}]\nmerge_method: sce\n", f"{'a' * 300}: no such file or directory"),
        ("slices: [{sources: [{model: [a]}]}]\nmerge_method: sce\n", "merge.yaml: slices: {'model': ['a']}: expected model"),
        ("slices: [1, 2]\nmerge_method: linear\n", "merge.yaml: slices: only one slice of all layers is handled"),
        ("merge_method: sce\nbase_model: base\n", "merge.yaml: expected one of models and slices"),
        ("models:\nmerge_method: linear\n", "merge.yaml: models: expected a list of models"),
        ("models: [{model: base}]\nmerge_method: ties\nbase_model: base\n", "merge.yaml: models: expected a model beside the base_model"),
        (f"{HEAD}merge_method: ties\nparameters: {{normalize: 'true'}}\n", "merge.yaml: normalize: 'true' is not handled, only true, false"),
        (f"{HEAD}merge_method: ties\nparameters: []\n", "merge.yaml: parameters: expected names and values"),
        (f"{HEAD}merge_method: ties\nparameters: {{density: .nan}}\n", "merge.yaml: density: nan: expected a number"),
        (f"{HEAD}merge_method: ties\ndtype: float77\nout_dtype: float32\n", "merge.yaml: dtype float77, expected one of"),
        ("- a\n", "merge.yaml: expected keys and values"),
        ("a: [", "merge.yaml: is not YAML"),
        (f"{HEAD}merge_method: ties\ndtype: [float32]\n", "merge.yaml: dtype ['float32'], expected one of float32"),
        (f"models: [{nested_aliases(9)}]\nmerge_method: ties\n", "merge.yaml: has more than 100,000 values"),
        (f"{HEAD}merge_method: {nested_aliases(9)}\n", "merge.yaml: has more than 100,000 values"),
        (f"{HEAD}merge_method: ties\nparameters: {{<<: {nested_aliases(9)}}}\n", "merge.yaml: has more than 100,000 values"),
        (f"models: [&a {'a' * 200_000}{', *a' * 99}]\nmerge_method: ties\n", "merge.yaml: has more than 100,000 values or 10,000,000 letters"),
        (f"{HEAD}merge_method: &a [*a]\n", "merge.yaml: has more than 100,000 values"),
        ('merge_method: "\\ud800"\n', "merge.yaml: is not YAML"),
    ],
)  # fmt: skip
def test_what_is_not_handled_is_refused_by_name(folder: Path, text: str, expected: str) -> None:
    assert message(InputError, lambda: by_config(text)).startswith(expected)
    assert not Path("found").exists()


@pytest.mark.parametrize("weight", ["9" * 400, f"[1, {'9' * 400}]", ".inf", ".nan", "x"])
def test_a_weight_that_is_no_finite_number_is_refused(folder: Path, weight: str) -> None:
    text = f"{BARE}merge_method: task_arithmetic\nparameters: {{weight: {weight}}}\n"
    with pytest.raises(FlexswitchError, match=r"expected (a )?number"):
        by_config(text)


def test_a_configuration_stands_alone_on_the_command_line(folder: Path, flexswitch: Any) -> None:
    Path("merge.yaml").write_text(f"{BARE}merge_method: sce\ndtype: bfloat16\n")
    made = flexswitch("merge", "--config", "merge.yaml", "-o", "found")
    assert made.status == 0
    assert "the merge is computed in float32, and stored in bfloat16" in made.err
    for options, named in (
        (("a",), "SOURCE"), (("--method", "ties"), "--method"), (("--per-task", "9"), "--per-task"),
        (("--device", "cuda"), "--device"),
    ):  # fmt: skip
        wrong = flexswitch("merge", *options, "--config", "merge.yaml", "-o", "other")
        assert (wrong.status, wrong.error) == (
            2,
            f"--config: the file says all about the merge; leave out {named}",
        )
    assert flexswitch("merge", "a", "--method", "ties", "-o", "other").error == (
        "give SOURCE... and --base BASE, or --config FILE alone"
    )
