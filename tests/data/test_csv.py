"""A user's own tables, as they really come: compared with what Python's own numbers and pandas say of them."""

import csv
import json
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from processes import command, train
from sklearn.datasets import load_iris
from test_source import load, parts, table

from launcher.core.errors import ConfigError
from launcher.data.csv import read_alike
from launcher.data.table import CONSTANT, classes_of, standardise, statistics
from launcher.losses.loss import build_loss

RUN = ["data=csv", "threads=1", "hydra.run.dir=run"]


# Values are carried as they are


@pytest.mark.parametrize("offset", [0, 10**15, 2**53, 10**18, 10**30])
def test_classes_are_compared_exactly_however_long_they_are(offset):
    values = [str(offset + i % 3) for i in range(12)]
    names, labels, numeric = classes_of(values, str)
    assert names == [str(offset + i) for i in range(3)] and numeric and labels.tolist() == [0, 1, 2] * 4


def test_classes_are_in_the_order_of_their_numbers_and_named_as_they_are_written():
    assert classes_of(["10", "9.50", "-1", "1e1", "+3", ".5"], str)[0] == ["-1", ".5", "+3", "9.50", "10"]
    assert classes_of(["007", "7", "10"], str)[0] == ["007", "10", "7"]  # a code with leading zeros is a text
    names, labels, _ = classes_of(["1.0", "2", "1", "2.00"], str)
    assert names == ["1", "2"] and labels.tolist() == [0, 1, 0, 1]
    assert classes_of(["1_0", "10"], str)[2] is False and classes_of(["１", "1"], str)[2] is False


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
    assert read_alike(new, **arguments).part.targets.tolist() == [0, 1] * 3
    for strange in (str(2**53 + 2), "x", "nan"):
        with pytest.raises(ConfigError, match="is no class of the training run"):
            read_alike(table(tmp_path / "v.csv", ["a", "y"], [[0, strange]]), **arguments)


def test_numbers_that_python_alone_would_read_are_refused(tmp_path):
    for value in ("1_000", "１٢", "−5", "1 000", "0x10", "True", "2020-01-31"):
        path = table(tmp_path / "t.csv", ["a", "y"], [*[[i, i % 2] for i in range(8)], [value, 1]])
        with pytest.raises(ConfigError, match=rf"line 10, column 'a': '{value}' is no number"):
            load("csv", path=path, target="y")


def test_decimal_commas_and_thousands(tmp_path):
    rows = [[f"{i},5", f"{i % 2}"] for i in range(20)]
    path = table(tmp_path / "t.csv", ["a", "y"], rows, ";")
    with pytest.raises(ConfigError, match=r"'0,5' is no number; .*data\.decimal"):
        load("csv", path=path, target="y", delimiter=";")
    data = load("csv", path=path, target="y", delimiter=";", decimal=",")
    raw = torch.cat([part.inputs for part in parts(data)]).double() * data.input_std + data.input_mean
    torch.testing.assert_close(raw.flatten().sort().values, torch.arange(20.0).double() + 0.5, rtol=1e-6, atol=1e-6)
    for value in ("1.234,5", "1.234"):  # a point parts thousands there
        path = table(tmp_path / "u.csv", ["a", "y"], [*rows, [value, "1"]], ";")
        with pytest.raises(ConfigError, match="is no number; write thousands without separators"):
            load("csv", path=path, target="y", delimiter=";", decimal=",")
    path = table(tmp_path / "v.csv", ["a", "y"], [[i, "Smith, J." if i % 2 else "Doe, A."] for i in range(20)], ";")
    assert load("csv", path=path, target="y", delimiter=";", decimal=",").class_names == ["Doe, A.", "Smith, J."]
    with pytest.raises(ConfigError, match=r"parted by ';': set data\.delimiter"):
        load("csv", path=path, target="y")


# Statistics


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e6, 1e12, 1e15, -1e15])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e5])
def test_statistics_are_those_of_exact_numbers(offset, spread):
    column = offset + spread * np.random.RandomState(0).randn(200)
    if len(set(column)) < 100:
        pytest.skip("float64 holds no such numbers")
    exact = [Fraction(value) for value in column.tolist()]
    mean = sum(exact) / len(exact)
    variance = sum((value - mean) ** 2 for value in exact) / len(exact)
    for pieces in ([column[:, None]], np.array_split(column[:, None], 7)):
        found_mean, found_std = statistics(pieces)
        assert abs(Fraction(found_mean[0]) - mean) <= Fraction(np.spacing(abs(offset)) + 1e-14 * spread)
        assert found_std[0] ** 2 == pytest.approx(float(variance), rel=1e-9)
    scaled = standardise(column[:, None], found_mean, found_std)
    assert abs(scaled.mean()) <= 2 * np.spacing(abs(offset)) / spread + 1e-12


def test_a_column_that_does_not_vary_becomes_zero_whatever_its_size():
    for value in (0.0, 0.1, 1234567890123456789.0, 1e300, -7e-300):
        rows = np.full((37, 1), value)
        mean, std = statistics([rows])
        assert mean[0] == value and std[0] == CONSTANT and not standardise(rows, mean, std).any()
        assert not np.float32(standardise(rows + 1e6, mean, std)).any()  # nothing was learned about another value
    noise = np.array([[0.1], [0.30000000000000004 - 0.2], [0.1]])  # equal but for the last bits
    assert statistics([noise])[1][0] == CONSTANT
    wide = np.array([[-1.7e308], [1.7e308], [0.0]])
    mean, std = statistics([wide])
    assert np.isfinite([mean, std]).all()
    np.testing.assert_allclose(standardise(wide, mean, std)[:, 0], [-np.sqrt(1.5), np.sqrt(1.5), 0], atol=1e-12)


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


# What is a header, an index, a class


def iris():
    source = load_iris()
    frame = pd.DataFrame(source.data, columns=["sl", "sw", "pl", "pw"])
    frame["kind"] = source.target_names[source.target]
    return frame


def test_a_table_without_a_header_is_asked_about_and_keeps_its_first_row(tmp_path):
    frame = iris()
    frame.to_csv(tmp_path / "t.csv", header=False, index=False)
    with pytest.raises(ConfigError, match=r"looks like a row .*5\.1, 3\.5.*data\.header=false .*0 to 4"):
        load("csv", path=str(tmp_path / "t.csv"), target="setosa")
    data = load("csv", path=str(tmp_path / "t.csv"), target="4", header=False)
    assert sum(map(len, parts(data))) == 150 and data.reader["columns"] == ["0", "1", "2", "3"]
    taken = load("csv", path=str(tmp_path / "t.csv"), target="setosa", header=True)
    assert sum(map(len, parts(taken))) == 149
    arguments = {key: value for key, value in data.reader.items() if key != "_target_"}
    assert len(read_alike(str(tmp_path / "t.csv"), **arguments).part) == 150


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
    assert load("csv", path=path, target="y").notes[1].startswith("11 rows of the validation and the test part are in")


@pytest.mark.parametrize("value", ["", "NA", "n/a", "NaN", "null", "<NA>", "#N/A", "-nan"])
def test_no_spelling_of_nothing_becomes_a_class_or_a_number(value, tmp_path):
    rows = [[i, "ab"[i % 2]] for i in range(20)]
    with pytest.raises(ConfigError, match=r"line 22, column 'y': .* is no target"):
        load("csv", path=table(tmp_path / "t.csv", ["a", "y"], [*rows, [1, value]]), target="y")
    with pytest.raises(ConfigError, match=r"line 22, column 'a': .* (is no number|is not finite)"):
        load("csv", path=table(tmp_path / "t.csv", ["a", "y"], [*rows, [value, "a"]]), target="y")


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
