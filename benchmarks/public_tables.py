"""Tables of a person's own beside scikit-learn: python benchmarks/public_tables.py penguins.csv:species tips.csv:tip.

Each table is learned by `launcher train data=table` with its path and target alone, by three seeds, and by two models
of scikit-learn on the same rows: HistGradientBoosting, and a logistic or ridge regression on the columns as a person
prepares them (words one-hot, gaps filled with the median, numbers standardised). Prints accuracy, or R2, on the test
rows. `--words` are further settings of the launcher.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import accuracy_score, r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from launcher.data.splitting import split_three  # noqa: E402

SEEDS = (0, 1, 2)


def ours(path: str, target: str, words: list[str]) -> tuple[dict[str, Any], list[float]]:
    """data.json of the launcher's runs, and the score of each on its test rows."""
    scores, record = [], {}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as place:
            settings = [f"data.path={path}", f"data.target={target}", f"seed={seed}", f"hydra.run.dir={place}/run"]
            command = [sys.executable, str(ROOT / "launcher/train.py"), "data=table", *settings, "wandb.mode=disabled"]
            subprocess.run([*command, *words], check=True, capture_output=True, text=True)
            final = json.loads(Path(place, "run/summary.json").read_text())["final"]
            record = json.loads(Path(place, "run/data.json").read_text())
        scores.append(final["test/accuracy"] if record["task"] == "classification" else final["test/r2"])
    return record, scores


def theirs(table: pd.DataFrame, target: str, record: dict[str, Any]) -> dict[str, float]:
    """The scores of scikit-learn's models on the rows that the launcher tests on, learned from those it learns from."""
    table = table[table[target].notna()].reset_index(drop=True)
    classes = record["task"] == "classification"
    values = table[target].map(str) if classes else table[target].astype(float)
    # Classes that are numbers may be written otherwise: 1 and 1.0
    labels = torch.from_numpy(pd.factorize(table[target], sort=True)[0].astype(np.int64)) if classes else None
    train, _, test = (rows.numpy() for rows in split_three(len(table), 0.2, 0.1, 0, labels))
    inputs = table.drop(columns=target)
    words = [name for name in inputs if inputs[name].dtype.kind not in "fiu"]
    inputs[words] = inputs[words].map(lambda cell: "none" if pd.isna(cell) else str(cell))
    numbers = [name for name in inputs if name not in words]
    prepared = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore", max_categories=50), words),
        (make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()), numbers),
    )
    categories = inputs.copy()
    for name in words:
        common = categories[name].value_counts().index[:250]
        categories[name] = categories[name].where(categories[name].isin(common), "others").astype("category")
    trees = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
    score = accuracy_score if classes else r2_score
    found = {}
    for name, model, given in (
        ("trees", trees(categorical_features="from_dtype", random_state=0), categories),
        ("linear", make_pipeline(prepared, LogisticRegression(max_iter=2000) if classes else RidgeCV()), inputs),
    ):
        model.fit(given.iloc[train], values.iloc[train])
        found[name] = float(score(values.iloc[test], model.predict(given.iloc[test])))
    return found


def main() -> None:
    """Compare on the tables that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", metavar="FILE:TARGET")
    parser.add_argument("--words", nargs="*", default=[])
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{'table':24} {'measured':>9} {'launcher (3 seeds)':>24} {'trees':>8} {'linear':>8}")
    for one in given.tables:
        path, _, target = one.rpartition(":")
        record, scores = ours(path, target, given.words)
        found = theirs(pd.read_csv(path), target, record)
        measured = "accuracy" if record["task"] == "classification" else "R2"
        own = " ".join(f"{score:.4f}" for score in scores)
        print(f"{Path(path).stem:24} {measured:>9} {own:>24} {found['trees']:8.4f} {found['linear']:8.4f}", flush=True)


if __name__ == "__main__":
    main()
