"""A plain Hydra application, which knows nothing of launchers: it fits a polynomial to noisy points."""

import logging
from pathlib import Path

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

log = logging.getLogger(__name__)


@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float:
    """Returns the mean squared error on points that were not fitted: what a sweeper may minimise."""
    random = np.random.default_rng(cfg.seed)
    x = random.uniform(-1, 1, 200)
    y = np.sin(3 * x) + cfg.noise * random.normal(size=200)
    powers, weights = np.vander(x, cfg.degree + 1), np.zeros(cfg.degree + 1)
    for _ in range(cfg.steps):
        weights -= cfg.lr * powers[:100].T @ (powers[:100] @ weights - y[:100]) / 100
    error = float(np.mean((powers[100:] @ weights - y[100:]) ** 2))
    log.info("degree %d: error %.4f", cfg.degree, error)
    np.save(Path(HydraConfig.get().runtime.output_dir) / "weights.npy", weights)
    return error


if __name__ == "__main__":
    main()
