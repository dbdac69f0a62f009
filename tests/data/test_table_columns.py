"""Words, gaps, dates and truths of a table as inputs, by the training split alone, and the same for another table."""

import gzip
import lzma
import shlex
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from data_sources import load, parts, table

from launcher.core.errors import ConfigError
from launcher.data.splitting import split_three
from launcher.data.table import read_alike
from launcher.data.table_columns import named_in


def people(rows: int = 200) -> pd.DataFrame:
    """Words, truths, dates, gaps, an identifier and a constant; the target is a number."""
    random = np.random.RandomState(0)
    frame = pd.DataFrame({
        "name": [f"p{i}" for i in range(rows)],
        "kind": random.choice(["ant", "bee", "cat"], rows, p=[0.6, 0.3, 0.1]),
        "age": random.randint(1, 90, rows).astype(float),
        "old": random.choice([True, False], rows),
        "seen": (pd.Timestamp("2020-01-01") + pd.to_timedelta(random.randint(0, 900, rows), "D")).strftime("%Y-%m-%d"),
        "unit": "cm",
        "price": random.randn(rows),
    })  # fmt: skip
    frame.loc[::7, "age"] = np.nan
    frame.loc[::5, "kind"] = None
    return frame


def inputs(data) -> dict[str, np.ndarray]:
    """Each input of the training split before it was standardised, by its name."""
    names = [name for column in data.reader["plan"] for name in column["inputs"]]
    raw = data.train.inputs.double() * data.input_std + data.input_mean
    return dict(zip(names, raw.numpy().T, strict=True))


def test_each_column_is_what_pandas_makes_of_the_training_split(tmp_path):
    frame = people()
    frame.to_csv(tmp_path / "t.csv", index=False)
    data = load("table", path=str(tmp_path / "t.csv"), target="price")
    train = frame.iloc[split_three(len(frame), 0.2, 0.1, 0)[0].numpy()]
    found = inputs(data)
    want = {f"kind={kind}": train.kind == kind for kind in ("ant", "bee", "cat")}
    want |= {"kind: missing": train.kind.isna(), "age: missing": train.age.isna(), "old": train.old}
    want |= {"age": train.age.fillna(train.age.median())}
    days = (pd.to_datetime(train.seen) - pd.Timestamp("1970-01-01")).dt.days
    want |= {"seen": days, "seen: sine of the year": np.sin(2 * np.pi * days / 365.2425)}
    for name, values in want.items():
        np.testing.assert_allclose(found.pop(name), values.to_numpy(float), atol=1e-4, rtol=1e-6, err_msg=name)
    assert set(found) == {"seen: cosine of the year", "seen: sine of the week", "seen: cosine of the week"}
    notes = "\n".join(data.notes)
    assert "left out, numbering or naming the rows: 'name' (data.keep=[name] keeps them)" in notes
    assert "left out, the same in every training row: 'unit' (data.keep=[unit] keeps them)" in notes
    assert "words, an input of 0 and 1 for each: 'kind' (3)" in notes and "'age'" in notes
    kept = load("table", path=str(tmp_path / "t.csv"), target="price", keep=["unit", "name"])
    assert {"name", "unit"} <= set(kept.reader["columns"])


def test_nothing_of_the_other_splits_is_learned(tmp_path):
    frame = people()
    frame.to_csv(tmp_path / "t.csv", index=False)
    _, *others = split_three(len(frame), 0.2, 0.1, 0)
    for at in others:
        frame.loc[at.numpy(), "kind"] = "dog"
        frame.loc[at.numpy(), "age"] = 1e6
    frame.to_csv(tmp_path / "u.csv", index=False)
    one, other = (load("table", path=str(tmp_path / f"{name}.csv"), target="price") for name in "tu")
    assert one.reader["plan"] == other.reader["plan"] and one.reader["mean"] == other.reader["mean"]
    assert torch.equal(one.train.inputs, other.train.inputs)


def test_another_table_is_prepared_by_what_training_fitted(tmp_path):
    frame = people()
    frame.to_csv(tmp_path / "t.csv", index=False)
    data = load("table", path=str(tmp_path / "t.csv"), target="price")
    arguments = {key: value for key, value in data.reader.items() if key != "_target_"}
    again = frame[frame.columns[::-1]]
    again.to_csv(tmp_path / "u.csv.gz", index=False, sep=";")
    found = read_alike(str(tmp_path / "u.csv.gz"), **arguments | {"delimiter": None})
    test = split_three(len(frame), 0.2, 0.1, 0)[2]
    torch.testing.assert_close(found.split.inputs[test], data.test.inputs, rtol=0, atol=0)
    torch.testing.assert_close(found.split.targets[test], data.test.targets, rtol=0, atol=0)
    new = frame[:3].drop(columns="price").assign(kind=["dog", "ant", None], age=None)
    new.to_csv(tmp_path / "v.csv", index=False)
    found = read_alike(str(tmp_path / "v.csv"), **arguments)
    names = [name for column in data.reader["plan"] for name in column["inputs"]]
    raw = dict(zip(names, (found.split.inputs.double() * data.input_std + data.input_mean).T.numpy(), strict=True))
    kinds = [raw[f"kind={kind}"].round(4).tolist() for kind in ("ant", "bee", "cat")]
    assert kinds == [[0, 1, 0], [0, 0, 0], [0, 0, 0]] and raw["kind: missing"].round(4).tolist() == [0, 0, 1]
    assert not found.labelled and np.ptp(raw["age"]) < 1e-3 and raw["age: missing"].round(4).tolist() == [1, 1, 1]
    for column, value, fault in (("age", "x", "is no number"), ("seen", "x", "is no date"), ("old", "x", "is neither")):
        frame[:3].assign(**{column: value}).to_csv(tmp_path / "w.csv", index=False)
        with pytest.raises(ConfigError, match=rf"input: .*w\.csv, line 2, column '{column}': 'x' {fault}"):
            read_alike(str(tmp_path / "w.csv"), **arguments)


def test_frequent_words_have_inputs_and_the_others_share_one(tmp_path):
    words = ["a"] * 60 + ["b"] * 40 + ["c", "d"] * 10
    path = table(tmp_path / "t.csv", ["w", "y"], [[word, 0.5 * i] for i, word in enumerate(words)])
    data = load("table", path=path, target="y", categories=2)
    train = np.array(words)[split_three(120, 0.2, 0.1, 0)[0].numpy()]
    found = inputs(data)
    assert list(found) == ["w=a", "w=b", "w: other"]
    np.testing.assert_allclose(found["w: other"], np.isin(train, ["c", "d"]), atol=1e-6)


def contents(frame: pd.DataFrame, form: str) -> bytes:
    text = {
        "csv": lambda: frame.to_csv(index=False),
        "tsv": lambda: frame.to_csv(index=False, sep="\t"),
        "pipe": lambda: frame.to_csv(index=False, sep="|"),
        "german": lambda: frame.to_csv(index=False, sep=";", decimal=","),
        "thousands": lambda: frame.assign(a=frame.a.map("{:,.3f}".format)).to_csv(index=False),
    }.get(form.split()[0], lambda: frame.to_csv(index=False))()
    return text.encode({"latin": "cp1252", "mark": "utf-8-sig", "utf16": "utf-16"}.get(form.split()[-1], "utf-8"))


@pytest.mark.parametrize(
    "form",
    ["csv", "tsv", "pipe", "german", "german latin", "thousands", "csv mark", "csv utf16", "csv latin", "tsv mark"],
)
@pytest.mark.parametrize("packed", ["", "gz", "xz", "zip", "parquet"])
def test_every_way_to_write_a_table_gives_the_same(form, packed, tmp_path):
    random = np.random.RandomState(1)
    frame = pd.DataFrame({"a": (4000 * random.randn(80)).round(3), "b": random.choice(["für", "où"], 80),
                          "y": random.choice(["né", "né pas"], 80)})  # fmt: skip
    (tmp_path / "plain.csv").write_text(frame.to_csv(index=False))
    want = load("table", path=str(tmp_path / "plain.csv"), target="y")
    path, found = tmp_path / f"t.{packed}", contents(frame, form)
    if packed == "parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    elif packed == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("t.csv", found)
    else:
        path.write_bytes({"gz": gzip.compress, "xz": lzma.compress, "": bytes}[packed](found))
    data = load("table", path=str(path), target="y")
    assert data.class_names == ["né", "né pas"] and data.reader["columns"] == ["a", "b"]
    for one, other in zip(parts(data), parts(want), strict=True):
        assert torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)
    guessed = any("read as cp1252" in note for note in data.notes)
    assert guessed is ("latin" in form and packed != "parquet")


def test_settings_of_the_format_say_what_is_not_recognised(tmp_path):
    rows = [[f"1,{i:03d}", i % 2] for i in range(1, 40)]  # thousands, or numbers from 1 to 2
    path = table(tmp_path / "t.csv", ["a", "y"], rows)
    for changes, largest in (({}, 1039.0), ({"decimal": ","}, 1.039), ({"thousands": ","}, 1039.0)):
        data = load("table", path=path, target="y", delimiter=",", **changes) if not changes.get("decimal") else None
        if data is None:  # a comma cannot be both
            with pytest.raises(ConfigError, match=r"data\.decimal: ','"):
                load("table", path=path, target="y", delimiter=",", **changes)
            continue
        assert data.reader["plan"][0]["kind"] == "number" and max(inputs(data)["a"]) == pytest.approx(largest, rel=0.01)
    tabs = table(tmp_path / "t.tsv", ["a", "y"], [[i * 0.5, i % 2] for i in range(40)], "\t")
    for delimiter in ("tab", r"\t", "\t", None):
        assert load("table", path=tabs, target="y", delimiter=delimiter).input_shape == (1,)
    signs = table(tmp_path / "u.csv", ["a", "y"], [["?" if i % 9 == 0 else i, i % 2] for i in range(60)])
    data = load("table", path=signs, target="y")
    assert "column 'a': '?' is taken for a gap" in data.notes and data.reader["plan"][0]["flag"]
    other = table(tmp_path / "v.csv", ["a", "y"], [["gone" if i % 9 == 0 else i, i % 2] for i in range(60)])
    with pytest.raises(ConfigError, match=r"line 2, column 'a': 'gone' is no number; .*data\.missing"):
        load("table", path=other, target="y")
    assert load("table", path=other, target="y", missing=["gone"]).reader["plan"] == data.reader["plan"]


@pytest.mark.parametrize(
    ("dates", "first"),
    [
        (["31/01/2020", "01/02/2020"], "2020-01-31"),
        (["01/31/2020", "02/01/2020"], "2020-01-31"),
        (["31.01.2020", "01.02.2020"], "2020-01-31"),
        (["2020/1/31", "2020/2/1"], "2020-01-31"),
        (["2020-01-31T00:00:00Z", "2020-02-01 12:30"], "2020-01-31"),
        (["03/04/2020", "04/04/2020"], "2020-03-04"),  # a guess
        (["03.04.2020", "04.04.2020"], "2020-04-03"),  # a guess
    ],
)
def test_dates_in_the_order_that_they_show(dates, first, tmp_path):
    rows = [[dates[i % 2], i % 5, 0.5 * i] for i in range(40)]
    data = load("table", path=table(tmp_path / "t.csv", ["d", "a", "y"], rows), target="y")
    assert data.reader["plan"][0]["kind"] == "date"
    day = (pd.Timestamp(first) - pd.Timestamp("1970-01-01")).days
    assert min(abs(inputs(data)["d"] - day)) < 1e-2
    assert any("first, a guess" in note for note in data.notes) is ("04" in dates[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delimiter": "ab"}, r"data\.delimiter: 'ab' is not one character"),
        ({"encoding": "utf-9"}, r"data\.encoding: 'utf-9' is no encoding"),
        ({"encoding": "ascii"}, r"is no text in data\.encoding=ascii"),
        ({"thousands": "x"}, r"data\.thousands: 'x'"),
        ({"keep": "a"}, r"data\.keep: 'a' is not a list"),
        ({"keep": ["q"]}, r"data\.keep: .*no column 'q'"),
        ({"missing": "a"}, r"data\.missing: 'a' is not a list"),
        ({"categories": 0}, r"data\.categories: 0"),
        ({"leave_out": "yes"}, r"data\.leave_out: 'yes'"),
    ],
)
def test_wrong_settings_are_one_sentence(changes, message, tmp_path):
    path = table(tmp_path / "t.csv", ["a", "y"], [[i * 0.5, "né"[i % 2]] for i in range(30)])
    with pytest.raises(ConfigError, match=message):
        load("table", path=path, target="y", **changes)


@pytest.mark.parametrize("name", ["id", "Median Income ($)", "it's", 'the "best"', "a,b", "[x]", "null", "7", "größe"])
def test_advice_to_drop_a_column_can_be_typed(name):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (word,) = shlex.split(named_in("data.drop", [name]))
    assert OverridesParser.create().parse_override(word).value() == [name]


def test_a_column_of_texts_is_told_from_one_of_names(tmp_path):
    rows = [[i % 3, f"row {i} has a few words", f"Smith, Mr. {i}", "ab"[i % 2]] for i in range(60)]
    path = table(tmp_path / "t.csv", ["x", "what they say", "name", "y"], rows)
    notes = load("table", path=path, target="y").notes
    assert any("naming the rows: 'name'" in note for note in notes), notes
    (note,) = (note for note in notes if note.startswith("left out, texts: 'what they say'"))
    pytest.importorskip("datasets")
    source, column, model = shlex.split(note.partition("say ")[2].partition(" in place of")[0])
    assert (source, column, model) == ("data=huggingface", 'data.input=["what they say"]', "model=encoder")
    data = load("huggingface", path=path, input=["what they say"], target="y", cache=str(tmp_path))
    assert data.class_names == ["a", "b"] and data.vocabulary == 258  # bytes, and two more
