"""Columns of targets."""

import json

import numpy as np
import pytest
import torch
from datasets_on_disk import cache, datasets, every, load, prices, raw, table  # noqa: F401

from launcher.losses.loss import build_loss

pytestmark = pytest.mark.versions


def test_classes_of_text_and_of_numbers_in_csv_and_json(tmp_path):
    (tmp_path / "t.csv").write_text("x,kind,size\n" + "".join(f"{i},{'ab'[i % 2]},{i % 3 + 5}\n" for i in range(30)))
    of_text = load(tmp_path / "t.csv", input="x", target="kind")
    assert (of_text.class_names, of_text.input_shape) == (["a", "b"], (1,))
    inputs, targets = every(of_text.train)
    assert torch.equal(raw(of_text, inputs)[:, 0].round() % 2, targets.float())
    of_numbers = load(tmp_path / "t.csv", input="x", target="size")
    assert of_numbers.class_names == ["5", "6", "7"]
    inputs, targets = every(of_numbers.test)
    assert torch.equal(raw(of_numbers, inputs)[:, 0].round() % 3, targets.float())
    assert load(tmp_path / "t.csv", input="x", target="size", task="regression").task == "regression"
    lines = [json.dumps({"x": [[i, 1], [2, 3]], "y": i % 2 == 0}) for i in range(20)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    of_truth = load(tmp_path / "t.jsonl", input="x", target="y")
    assert (of_truth.class_names, of_truth.input_shape) == (["False", "True"], (2, 2))


def test_things_that_may_occur_together_stay_0_and_1(tmp_path):
    inputs, several = table()[0], np.arange(90).reshape(30, 3) % 2
    datasets.Dataset.from_dict({"x": inputs.tolist(), "y": several.tolist()}).to_parquet(tmp_path / "several.parquet")
    data = load(tmp_path / "several.parquet", input="x", target="y")
    assert (
        data.task == "multilabel"
        and data.target_mean is None
        and set(data.train.targets.unique().tolist()) == {0.0, 1.0}
    )
    build_loss({"_target_": "torch.nn.BCEWithLogitsLoss", "pos_weight": None}, data)


@pytest.mark.parametrize(
    ("targets", "task"),
    [
        (prices()["price"], "regression"),  # were 1,996 classes
        ([float(price) for price in prices()["price"]], "regression"),
        ([i % 7 for i in range(2000)], "classification"),
        ([float(i % 2) for i in range(2000)], "classification"),  # were numbers, as pandas makes of whole ones
        ([i % 2 + 0.5 for i in range(2000)], "regression"),
        ([i % 2 == 0 for i in range(2000)], "classification"),
        (["ab"[i % 2] for i in range(2000)], "classification"),
        ([[i % 2, 1] for i in range(2000)], "multilabel"),
        ([[i % 3, i % 5] for i in range(2000)], "regression"),
    ],
)
def test_a_task_is_guessed_as_that_of_the_same_table_in_csv(targets, task, tmp_path):
    from launcher.data import table as tables

    content = {"x": [(7 * i) % 2000 for i in range(2000)], "y": targets}
    dataset = datasets.Dataset.from_dict(content)
    dataset.to_parquet(str(tmp_path / "t.parquet"))
    data = load(tmp_path / "t.parquet", input="x", target="y")
    assert data.task == task
    if not isinstance(targets[0], list):
        dataset.to_csv(str(tmp_path / "t.csv"))
        of_csv = tables.load(str(tmp_path / "t.csv"), "y", "auto", ",", ".", None, [], 0.2, 0.1, 0, leave_out=False)
        assert of_csv.task == task and of_csv.class_names == data.class_names
        kinds = (int, float) if not isinstance(targets[0], bool) else ()
        assert [n for n in data.notes if n in of_csv.notes] == [n for n in data.notes if isinstance(targets[0], kinds)]
        assert torch.equal(of_csv.test.targets, data.test.targets.view_as(of_csv.test.targets))
        torch.testing.assert_close(every(data.train)[0], of_csv.train.inputs, rtol=0, atol=0)


def test_each_part_may_number_the_classes_in_its_own_order(tmp_path):
    parts = {}
    for part, names in {"train": ["cat", "dog", "cow"], "test": ["cow", "cat", "dog"]}.items():
        features = datasets.Features({"x": datasets.Value("float64"), "y": datasets.ClassLabel(names=names)})
        spoken = [["cat", "dog", "cow"][i % 3] for i in range(30)]
        content = {"x": [float(i % 3) for i in range(30)], "y": spoken}
        parts[part] = datasets.Dataset.from_dict(content, features=features)
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    data = load(tmp_path / "d", input="x", target="y")
    assert data.class_names == ["cat", "dog", "cow"] and data.test.targets.tolist() == [0, 1, 2] * 10
