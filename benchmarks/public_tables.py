"""Tables of a person's own beside scikit-learn: python benchmarks/public_tables.py penguins.csv:species tips.csv:tip.

Each table is learned by `launcher train -m data=table model=mlp,linear` with its path and target alone, and by two
models of scikit-learn on the same rows: HistGradientBoosting, and a logistic or ridge regression on the columns as a
person prepares them (words one-hot, gaps filled, numbers standardised). Prints accuracy, or R2, on the test rows, the
mean over `--splits` draws of them: one draw of a small table says little. `--words` are further settings of the
launcher. It evaluates and saves at the end alone, which changes no result.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from omegaconf import OmegaConf
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

MODELS = ("mlp", "linear")
FASTER = ("eval_every=null", "checkpoint.every=null", "checkpoint.best=null")


def ours(path: str, target: str, splits: int, words: list[str]) -> tuple[str, np.ndarray]:
    """What is measured, and of each split the score of each of MODELS on its test rows, [splits, 2]."""
    with tempfile.TemporaryDirectory() as place:
        draws = ",".join(map(str, range(splits)))
        several = [f"model={','.join(MODELS)}", f"data.split_seed={draws}", f"hydra.sweep.dir={place}"]
        settings = [f"data.path={path}", f"data.target={target}", *several, "trackers=[]", *FASTER]
        command = [sys.executable, str(ROOT / "launcher/train.py"), "-m", "data=table", *settings, *words]
        subprocess.run(command, check=True, capture_output=True, text=True)
        scores = np.full((splits, len(MODELS)), np.nan)
        for file in Path(place).glob("*/summary.json"):
            record = json.loads(file.with_name("data.json").read_text())
            chosen = OmegaConf.load(file.with_name(".hydra") / "config.yaml")
            model = MODELS.index(chosen.model._target_.rpartition(".")[2].lower())
            figure = "accuracy" if record["task"] == "classification" else "r2"
            scores[chosen.data.split_seed, model] = json.loads(file.read_text())["final"][f"test/{figure}"]
    return figure, scores


def theirs(table: pd.DataFrame, target: str, classes: bool, split: int) -> list[float]:
    """The scores of scikit-learn's two models on the test rows of a split, with the launcher's training rows."""
    table = table[table[target].notna()].reset_index(drop=True)
    values = table[target].map(str) if classes else table[target].astype(float)
    # Classes that are numbers may be written otherwise: 1 and 1.0
    labels = torch.from_numpy(pd.factorize(table[target], sort=True)[0].astype(np.int64)) if classes else None
    train, _, test = (rows.numpy() for rows in split_three(len(table), 0.2, 0.1, split, labels))
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
    found = []
    for model, given in (
        (trees(categorical_features="from_dtype", random_state=0), categories),
        (make_pipeline(prepared, LogisticRegression(max_iter=2000) if classes else RidgeCV()), inputs),
    ):
        model.fit(given.iloc[train], values.iloc[train])
        found.append(float(score(values.iloc[test], model.predict(given.iloc[test]))))
    return found


def main() -> None:
    """Compare on the tables that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", metavar="FILE:TARGET")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--words", nargs="*", default=[])
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{'table':20} {'rows':>6} {'target':16} {'measured':>8} {'mlp':>7} {'trees':>7} {'linear':>7} {'theirs':>7}")
    for one in given.tables:
        path, _, target = one.rpartition(":")
        figure, own = ours(path, target, given.splits, given.words)
        table = pd.read_csv(path)
        found = [theirs(table, target, figure == "accuracy", split) for split in range(given.splits)]
        (mlp, linear), (trees, other) = own.mean(0), np.mean(found, 0)
        what = f"{Path(path).stem:20} {len(table):6} {target:16} {figure:>8}"
        print(f"{what} {mlp:7.3f} {trees:7.3f} {linear:7.3f} {other:7.3f}", flush=True)


if __name__ == "__main__":
    main()
