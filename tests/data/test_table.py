"""A user's own tables, as they really come: compared with what Python's own numbers and pandas say of them.

By data=csv, which is data=table but that it keeps constant columns; words, gaps and dates are in test_table_columns.py.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from data_sources import load, parts, table
from processes import command, train
from sklearn.datasets import load_iris

from launcher.core.errors import ConfigError
from launcher.data.table import read_alike
from launcher.losses.loss import build_loss

RUN = ["data=csv", "threads=1", "hydra.run.dir=run"]


def test_a_run_on_classes_of_16_digits_from_end_to_end(tmp_path):
    """Their names in predictions.csv, in evaluation.json, and the figures on new data: 0.485 of them were right."""
    random = np.random.RandomState(0)
    names = ["1234567890123456", "1234567890123457"]
    rows = [[random.randn() + 4 * (i % 2), random.randn(), names[i % 2]] for i in range(400)]
    table(tmp_path / "old.csv", ["a", "b", "y"], rows)
    table(tmp_path / "new.csv", ["a", "b", "y"], rows[:100])
    train([*RUN, "data.path=old.csv", "data.target=y", "epochs=15"], tmp_path).ok()
    command("evaluate", ["run_dir=run", "input=new.csv"], tmp_path).ok()
    command("predict", ["run_dir=run", "input=new.csv"], tmp_path).ok()
    found = json.loads((tmp_path / "run/evaluation_input.json").read_text())
    assert found["class_names"] == names and found["metrics"]["accuracy"] > 0.9
    with (tmp_path / "predictions.csv").open() as file:
        predicted = list(csv.DictReader(file))
    assert set(predicted[0]) == {"sample", "predicted", "target", *(f"p_{name}" for name in names)}
    assert [row["target"] for row in predicted] == [row[2] for row in rows[:100]]
    right = sum(row["predicted"] == row["target"] for row in predicted) / 100
    assert right == pytest.approx(found["metrics"]["accuracy"])


def test_another_table_is_matched_by_the_value_of_its_classes(tmp_path):
    path = table(tmp_path / "t.csv", ["a", "y"], [[i, 2**53 + i % 2] for i in range(40)])
    data = load("csv", path=path, target="y")
    arguments = {key: value for key, value in data.reader.items() if key != "_target_"}
    new = table(tmp_path / "u.csv", ["a", "y"], [[0, f"{2**53 + i % 2}.0"] for i in range(6)])
    assert read_alike(new, **arguments).split.targets.tolist() == [0, 1] * 3
    for strange in (str(2**53 + 2), "x", "nan"):
        with pytest.raises(ConfigError, match="is no class of the training run"):
            read_alike(table(tmp_path / "v.csv", ["a", "y"], [[0, strange]]), **arguments)


def test_numbers_that_python_alone_would_read_are_refused(tmp_path):
    for value in ("1_000", "１٢", "−5", "10 00", "0x10", "True", "2020-01-31"):
        path = table(tmp_path / "t.csv", ["a", "y"], [*[[i, i % 2] for i in range(8)], [value, 1]])
        with pytest.raises(ConfigError, match=rf"line 10, column 'a': '{value}' is no number"):
            load("csv", path=path, target="y")


def test_decimal_commas_and_thousands(tmp_path):
    rows = [[f"{i},5", f"{i % 2}"] for i in range(20)]
    path = table(tmp_path / "t.csv", ["a", "y"], rows, ";")
    for changes in ({}, {"delimiter": ";"}, {"delimiter": ";", "decimal": ","}):
        data = load("csv", path=path, target="y", **changes)
        raw = torch.cat([part.inputs for part in parts(data)]).double() * data.input_std + data.input_mean
        torch.testing.assert_close(raw.flatten().sort().values, torch.arange(20.0).double() + 0.5, rtol=1e-6, atol=1e-6)
        assert any("decimal comma" in note for note in data.notes) is ("decimal" not in changes)
    for value, number in (("1.234,5", 1234.5), ("1.234", 1234)):  # a point parts thousands there
        path = table(tmp_path / "u.csv", ["a", "y"], [*rows, [value, "1"]], ";")
        data = load("csv", path=path, target="y")
        raw = torch.cat([part.inputs for part in parts(data)]).double() * data.input_std + data.input_mean
        assert raw.max().item() == pytest.approx(number)
    path = table(tmp_path / "u.csv", ["a", "y"], [*rows, ["12.5", "1"]], ";")
    with pytest.raises(ConfigError, match=r"line 22, column 'a': '12\.5' is no number"):
        load("csv", path=path, target="y", decimal=",")
    path = table(tmp_path / "v.csv", ["a", "y"], [[i, "Smith, J." if i % 2 else "Doe, A."] for i in range(20)], ";")
    assert load("csv", path=path, target="y", delimiter=";", decimal=",").class_names == ["Doe, A.", "Smith, J."]
    with pytest.raises(
        ConfigError, match=r"line 2 has 2 columns, and the first 1\..*parted by ';': set data\.delimiter"
    ):
        load("csv", path=path, target="y", delimiter=",")


def test_a_constant_column_of_19_digits_does_no_harm(tmp_path):
    """It became -21504 for every row, with 51 % right beside a column that tells all."""
    random = np.random.RandomState(0)
    rows = [[1234567890123456789, 3.0 * (i % 2) + 0.01 * random.randn(), "ny"[i % 2]] for i in range(200)]
    data = load("csv", path=table(tmp_path / "t.csv", ["c", "x", "y"], rows), target="y")
    assert all(not part.inputs[:, 0].any() for part in parts(data))
    assert any("the same in every training row" in note and "'c'" in note for note in data.notes)
    train([*RUN, "data.path=t.csv", "data.target=y", "epochs=20", "batch.global_size=16"], tmp_path).ok()
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["final"]["test/accuracy"] == 1.0
    assert "note       the same in every training row" in (tmp_path / "run/train.log").read_text()


def iris():
    source = load_iris()
    frame = pd.DataFrame(source.data, columns=["sl", "sw", "pl", "pw"])
    frame["kind"] = source.target_names[source.target]
    return frame


def test_a_table_without_a_header_keeps_its_first_row(tmp_path):
    frame = iris()
    frame.to_csv(tmp_path / "t.csv", header=False, index=False)
    with pytest.raises(ConfigError, match=r"looks like a row .*5\.1, 3\.5.*data\.header=false .*0 to 4"):
        load("csv", path=str(tmp_path / "t.csv"), target="setosa")
    data = load("csv", path=str(tmp_path / "t.csv"), target="4", header=False)
    assert sum(map(len, parts(data))) == 150 and data.reader["columns"] == ["0", "1", "2", "3"]
    taken = load("csv", path=str(tmp_path / "t.csv"), target="setosa", header=True)
    assert sum(map(len, parts(taken))) == 149
    arguments = {key: value for key, value in data.reader.items() if key != "_target_"}
    assert len(read_alike(str(tmp_path / "t.csv"), **arguments).split) == 150


@pytest.mark.parametrize(
    ("header", "doubtful"),
    [
        (["a", "b", "y"], False),
        (["0", "1", "2"], False),  # as pandas names the columns of an array
        (["1", "2", "3"], False),
        (["", "1", "2"], False),
        (["2019", "2020", "y"], True),
        (["1.5", "-2", "y"], True),
        (["1.5", "2", "1"], True),
        (["1.5", "1.5", "y"], True),
    ],
)
def test_what_a_header_looks_like(header, doubtful, tmp_path):
    path = table(tmp_path / "t.csv", header, [[i * 0.5, i % 7, "ab"[i % 2]] for i in range(30)])
    if doubtful:
        with pytest.raises(ConfigError, match="looks like a row"):
            load("csv", path=path, target=header[-1])
    else:
        assert len(load("csv", path=path, target=header[-1], drop=[h for h in header if h == ""]).train) == 22


def test_a_refusal_about_the_target_names_the_task(tmp_path):
    prices = table(tmp_path / "t.csv", ["a", "y"], [[i, 3 * i] for i in range(40)])
    with pytest.raises(ConfigError, match=r"task regression\..*Or set data\.task=classification"):
        build_loss({"_target_": "torch.nn.CrossEntropyLoss"}, load("csv", path=prices, target="y"))
    kinds = table(tmp_path / "u.csv", ["a", "y"], [[i, "ab"[i % 2]] for i in range(40)])
    with pytest.raises(ConfigError, match=r"task classification\..*Or set data\.task=regression"):
        build_loss({"_target_": "torch.nn.MSELoss"}, load("csv", path=kinds, target="y"))
    with pytest.raises(ConfigError, match=r"column 'y': 'a' is no number; data\.task=classification takes each text"):
        load("csv", path=kinds, target="y", task="regression")


def test_an_index_of_pandas_is_no_input(tmp_path):
    """By their number the sorted flowers were told apart without a mistake."""
    frame = iris()
    frame.to_csv(tmp_path / "t.csv")
    frame.sample(frac=1, random_state=0).to_csv(tmp_path / "u.csv")
    pd.read_csv(tmp_path / "t.csv").to_csv(tmp_path / "v.csv")  # once more: now it is called Unnamed: 0
    frame.to_csv(tmp_path / "w.csv", index_label="number")
    for name in "tuv":
        data = load("csv", path=str(tmp_path / f"{name}.csv"), target="kind")
        assert data.reader["columns"] == ["sl", "sw", "pl", "pw"]
        assert sum("numbers the rows, as an index that pandas wrote" in note for note in data.notes) == 1 + (
            name == "v"
        )
    data = load("csv", path=str(tmp_path / "w.csv"), target="kind")
    assert data.reader["columns"][0] == "number"  # somebody named it
    assert any("'number' numbers the rows; where it says nothing, data.drop=[number]" in note for note in data.notes)


def test_what_is_guessed_or_looks_strange_is_said_in_a_line(tmp_path):
    def notes(targets, **changes):
        rows = [[i * i, targets[i % len(targets)]] for i in range(40)]
        return load("csv", path=table(tmp_path / "t.csv", ["a", "y"], rows), target="y", **changes).notes

    few = "target 'y' has 5 different values: a classification (data.task=regression takes it for numbers)"
    assert notes(range(5)) == [few]
    assert "40 different values: a regression" in notes(range(40))[0]
    assert notes("ab") == ["target 'y' is text: 2 classes"] and not notes("01", task="classification")
    assert "1 classes are spelt in several ways" in notes(["1", "1.0", "2"])[1]
    assert "the classes 'Cat' and 'cat' look alike" in notes(["cat", "Cat"])[1]
    assert "look alike" in notes(["caf\u00e9", "cafe\u0301"])[1]
    path = table(tmp_path / "t.csv", ["a", "y"], [[i % 3, i % 3] for i in range(40)])
    assert load("csv", path=path, target="y").notes[1].startswith("11 rows of the validation and the test split are in")


@pytest.mark.parametrize("value", ["", "NA", "n/a", "NaN", "null", "<NA>", "#N/A", "-nan"])
def test_no_spelling_of_nothing_becomes_a_class_or_a_number(value, tmp_path):
    rows = [[i, "ab"[i % 2]] for i in range(20)]
    with pytest.raises(ConfigError, match=r"line 22, column 'y': .* is no target"):
        load("csv", path=table(tmp_path / "t.csv", ["a", "y"], [*rows, [1, value]]), target="y")
    with pytest.raises(ConfigError, match=r"line 22, .* is no target, and 2 more of the 23 rows have none; fill"):
        load("csv", path=table(tmp_path / "t.csv", ["a", "y"], [*rows, *[[1, value]] * 3]), target="y")
    data = load("csv", path=table(tmp_path / "t.csv", ["a", "y"], [*rows, [value, "a"]]), target="y")
    assert sum(map(len, parts(data))) == 21 and data.reader["plan"][0]["kind"] == "number"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decimal": ";"}, r"data\.decimal: ';' "),
        ({"decimal": ","}, r"data\.decimal: ',' .*data\.delimiter"),
        ({"header": "yes"}, r"data\.header: 'yes' "),
    ],
)
def test_settings_out_of_range(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load("csv", path=table(tmp_path / "t.csv", ["a", "y"], [[1, 2]]), target="y", **changes)


def flowers(path: Path, label=lambda k: "xyz"[k]) -> str:
    rows = [[i, i % 3 + 0.5, -i, label(i % 3)] for i in range(60)]
    return table(path, ["a", "b", "c", "kind"], rows)


def test_csv_with_text_classes(tmp_path):
    data = load("csv", path=flowers(tmp_path / "t.csv"), target="kind")
    assert (data.task, data.input_shape, data.num_outputs) == ("classification", (3,), 3)
    assert data.class_names == ["x", "y", "z"]
    assert [len(part) for part in parts(data)] == [43, 5, 12]
    for part in parts(data):
        # Column b tells the class, and standardising keeps the order of the values.
        assert torch.equal(torch.unique(part.inputs[:, 1], return_inverse=True)[1], part.targets)
        torch.testing.assert_close(part.inputs[:, 0], -part.inputs[:, 2])
    torch.testing.assert_close(data.train.inputs.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.train.inputs.std(0, correction=0), torch.ones(3))


def test_csv_with_numbers_as_classes(tmp_path):
    data = load("csv", path=flowers(tmp_path / "t.csv", lambda k: [10, 9, -1][k]), target="kind")
    assert data.task == "classification" and data.class_names == ["-1", "9", "10"]


def test_csv_as_a_regression(tmp_path):
    path = table(tmp_path / "t.csv", ["x", "y"], [[i, 3 * i + 0.5] for i in range(50)])
    data = load("csv", path=path, target="y")
    assert (data.task, data.num_outputs, data.class_names) == ("regression", 1, None)
    torch.testing.assert_close(data.test.targets.float(), data.test.inputs, rtol=1e-4, atol=1e-5)
    assert data.train.targets.shape == (35 + 1, 1)
    # Whole numbers of many values are a regression too, and of few one where it is asked for.
    path = table(tmp_path / "u.csv", ["x", "y"], [[i, i] for i in range(50)])
    assert load("csv", path=path, target="y").task == "regression"
    path = table(tmp_path / "v.csv", ["x", "y"], [[i, i % 4] for i in range(50)])
    assert load("csv", path=path, target="y").task == "classification"
    assert load("csv", path=path, target="y", task="regression").num_outputs == 1


def test_csv_of_a_spreadsheet(tmp_path):
    # A byte order mark, semicolons, spaces, quotes, an empty line, CRLF, a column to leave out.
    text = "\ufeffid; a ;b;kind\r\n" + "".join(f'n{i};{i}; {i % 2};"k {i % 2}"\r\n' for i in range(30)) + "\r\n"
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode("utf-8"))
    data = load("csv", path=str(path), target="kind", delimiter=";", drop=["id"])
    assert data.input_shape == (2,) and data.class_names == ["k 0", "k 1"]


def test_csv_constant_column_becomes_zero(tmp_path):
    path = table(tmp_path / "t.csv", ["one", "x", "k"], [[0.1, i, i % 2] for i in range(30)])
    data = load("csv", path=path, target="k")
    assert all(part.inputs[:, 0].abs().max() < 1e-6 for part in parts(data))


def edited(path: Path, line: int, text: str | None) -> str:
    flowers(path)
    lines = path.read_text().splitlines()
    lines[line - 1 : line] = [] if text is None else [text]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (7, "1,abc,3,x", r"t\.csv, line 7, column 'b': 'abc' is no number.*data\.drop=\[b\]"),
        (61, "1,2,inf,x", r"t\.csv, line 61, column 'c': 'inf' is not finite"),
        (9, "1e400,2,3,x", r"t\.csv, line 9, column 'a': '1e400' is not finite"),
        (5, "1,2,3, ", r"t\.csv, line 5, column 'kind': '' is no target"),
        (5, "1,2,3", r"t\.csv, line 5 has 3 columns, and the first 4"),
        (5, "1,2,3,x,5", r"t\.csv, line 5 has 5 columns"),
        (1, "a,a,c,kind", r"t\.csv has more than one column named 'a'"),
        (1, "a,b,c,label", r"data\.target: .*t\.csv has no column 'kind'; it has: a, b, c, label"),
    ],
)
def test_csv_names_line_and_column(tmp_path, line, text, message):
    with pytest.raises(ConfigError, match=message):
        load("csv", path=edited(tmp_path / "t.csv", line, text), target="kind")


def test_csv_lines_are_those_of_the_file_also_after_gaps(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('a,k\n1,x\n\n"2",y\n\n\nbad,x\n' + "3,x\n" * 9)
    with pytest.raises(ConfigError, match=r"line 7, column 'a': 'bad'"):
        load("csv", path=str(path), target="k")


def test_csv_refuses_what_is_no_table(tmp_path):
    path = tmp_path / "t.csv"
    for content, message in [
        (b"", r"t\.csv is empty"),
        (b"\n\n", r"t\.csv is empty"),
        (b"a,k\n", r"has a header \(a, k\) and no rows"),
        (b"a,k\n\xff\xfe\0,1\n", r"t\.csv is no text"),
        (b"\x1f\x8b" + bytes(20), r"t\.csv is packed and damaged"),
        (b"PAR1" + bytes(20), r"t\.csv is parquet and cannot be read"),
        (b"k\n1\n2\n", r"no input column beside the target 'k'"),
        (b"a,k\n1,x\n2,y\n", r"2 samples are too few"),
        (b"a,k\n" + b"1,x\n2,y\n3,z\n4,w\n5,v\n", r"each class keeps one to train"),
        (b"a,k\n" + b"1,x\n" * 9, r"data\.target: column 'k' of .* is 'x' in all 9 rows"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            load("csv", path=str(path), target="k")
    path.write_text("a,k\n" + "1,2.5\n" * 9)
    with pytest.raises(ConfigError, match=r"data\.target: it is \[2\.5\] in all \d training rows"):
        load("csv", path=str(path), target="k")
    with pytest.raises(ConfigError, match=r"data\.path: cannot read .*gone\.csv: No such file"):
        load("csv", path=str(tmp_path / "gone.csv"), target="k")
    with pytest.raises(ConfigError, match=r"data\.path: cannot read .*: Is a directory"):
        load("csv", path=str(tmp_path), target="k")
    with pytest.raises(ConfigError, match=r"data\.path: None is no file"):
        load("csv", target="k")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": None}, r"data\.target: name the column .*a, b, c, kind"),
        ({"task": "ranking"}, r"data\.task: 'ranking' "),
        ({"task": "regression"}, r"line 2, column 'kind': 'x' is no number"),
        ({"delimiter": ", "}, r"data\.delimiter: ', ' "),
        ({"delimiter": ";"}, r"data\.target: .* it has: a,b,c,kind\."),
        ({"drop": ["d"]}, r"data\.drop: .*no column 'd'"),
        ({"drop": ["a", "kind"]}, r"data\.drop: 'kind' is data\.target"),
        ({"drop": ["a"], "keep": ["b", "a"]}, r"data\.keep, data\.drop: both name 'a'"),
        ({"drop": "a"}, r"data\.drop: 'a' is not a list"),
    ],
)
def test_csv_refuses_settings(tmp_path, changes, message):
    path = flowers(tmp_path / "t.csv")
    with pytest.raises(ConfigError, match=message):
        load("csv", **({"path": path, "target": "kind"} | changes))
