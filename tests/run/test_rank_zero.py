"""Every rank calls the object that writes; on the others nothing is written, and nothing fails."""

import logging
from types import SimpleNamespace

import torch
from omegaconf import OmegaConf

from launcher.config.composed import Composed
from launcher.distributed.ranks import Ranks
from launcher.run.rank_zero import RankZero


def test_on_another_rank_all_of_it_does_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    composed = Composed(OmegaConf.create({"profile": True}), OmegaConf.create({}), [])
    with caplog.at_level(logging.INFO), RankZero(composed, Ranks(1, 2, 1, 2)) as rank_zero:
        assert rank_zero.profiler() is None and not rank_zero.writes
        rank_zero.announce(SimpleNamespace(), torch.device("cpu"))
        rank_zero.begin(SimpleNamespace(), 10, 5, torch.device("cpu"))
        rank_zero.row(1, {"train/loss": 1.0}, {})
        rank_zero.watch(1, torch.nn.Linear(1, 1))
        rank_zero.warn("%s", "never")
        rank_zero.wait_for_checkpoint()
        rank_zero.go_back(0)
        rank_zero.finish_saving()
    assert not list(tmp_path.iterdir()) and not caplog.records


def test_a_failure_lets_go_of_nothing(tmp_path):
    """The lock stays until the process is gone: a checkpoint may still be on its way to the disk."""
    closed = []
    rank_zero = RankZero.__new__(RankZero)
    rank_zero.writes, rank_zero.complete, rank_zero._outcome = True, False, None
    rank_zero.reporter = SimpleNamespace(show=lambda: closed.append("shown"))
    rank_zero.directory = SimpleNamespace(close=lambda: closed.append("closed"))
    try:
        with rank_zero:
            raise RuntimeError
    except RuntimeError:
        assert closed == []
    with rank_zero:
        pass
    assert closed == ["shown", "closed"]
