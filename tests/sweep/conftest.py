import json

import pytest
from sweeps import OWN


@pytest.fixture
def place(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


@pytest.fixture
def made(tmp_path):
    """A sweep's files, with names that would break a page."""
    values = {}
    for number, (lr, seed) in enumerate((lr, seed) for lr in ("0.1", "0.01") for seed in (0, 1, 2)):
        path = tmp_path / f"p{number}"
        (path / ".hydra").mkdir(parents=True)
        loss = [1.0, 0.5 + 0.1 * seed + (0.3 if lr == "0.01" else 0)]
        values[lr, seed] = loss[1]
        overrides = [f"optimizer.lr={lr}", f"seed={seed}", "wandb.name='<b>$x_1$</b>'", "hydra.run.dir=x"]
        (path / ".hydra/overrides.yaml").write_text(json.dumps(overrides))
        config = {"optimizer": {"lr": float(lr)}, "seed": seed, "checkpoint": {"best": "eval/loss", "best_mode": "min"}}
        (path / ".hydra/config.yaml").write_text(json.dumps(config))
        rows = [{"step": s, "epoch": float(s), "eval/loss": v, "eval/accuracy": 1 - v} for s, v in enumerate(loss, 1)]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        figures = {"eval/loss": loss[1], "eval/accuracy": 1 - loss[1]}
        (path / "summary.json").write_text(json.dumps({"status": "finished", "final": figures, "best": figures}))
    planned = {"bad": ["optimizer.lr=<script>alert(1)</script>", "seed=0"]}
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/failed.json").write_text(json.dumps({"reason": "<script>no</script>", "output": "</pre><script>"}))
    (tmp_path / "grid.json").write_text(json.dumps({"points": planned, "script": "launcher/train.py"}))
    return tmp_path, values
