"""What a run goes on from: its state gathered for a checkpoint, and put back from one."""

import logging
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from launcher.core.errors import ConfigError
from launcher.distributed.collectives import at_rank_0, sum_over_ranks
from launcher.distributed.ranks import Ranks
from launcher.distributed.rendezvous import by_rank_0
from launcher.training.checkpoint import DamagedCheckpoint, read_checkpoint, resolve_resume_checkpoint, verify
from launcher.training.progress import Progress, Rules
from launcher.training.trainer import LossAccumulator, Trainer

if TYPE_CHECKING:
    from launcher.run.record import Record
    from launcher.training.hooks import Hooks

log = logging.getLogger("launcher")


def state_before_row(trainer: Trainer, progress: Progress, hooks: "Hooks | None") -> dict[str, Any]:
    """What an evaluation and a log line change, as it is before them; for `gather_state`."""
    return {
        **({} if hooks is None else {"hooks": hooks.state()}),
        "progress": asdict(replace(progress, seen=False)),
        "schedule": trainer.schedule.state_dict(),
        "window": trainer.accumulator,  # a log line begins another
    }


def gather_state(
    trainer: Trainer, progress: Progress, before: dict[str, Any] | None = None, hooks: "Hooks | None" = None
) -> dict[str, Any]:
    """Everything but the weights of the eval model that the next step depends on; whole on rank 0.

    The losses since the last log line are summed over the ranks, in the order in which the log would do it, and
    belong to rank 0 after a resume: the sum comes out the same, at any number of ranks. `before` is what
    `state_before_row` gave where this step was evaluated or logged: a run that ends elsewhere goes on from there.

    Raises:
        Diverged: A loss, a weight or the state of the optimizer is NaN or infinite: nothing of the kind is ever saved.
    """
    trainer.check()
    trainer.sync_ema_buffers()
    ranks = trainer.ranks
    random_states = at_rank_0({"python": random.getstate(), "numpy": _numpy_state()}, ranks.world_size, ranks.rank)
    return {
        "model": trainer.weights(trainer.model) if trainer.eval_model is not trainer.model else None,
        "optimizer": trainer.optimizer_state(),
        "schedule": trainer.schedule.state_dict(),
        "scaler": trainer.scaler.state_dict() if trainer.scaler is not None else None,
        "progress": asdict(progress),
        "lr": trainer.lr,
        "window": _summed(trainer.accumulator, trainer),
        "random": random_states,
        **({"base": trainer.base.digest} if trainer.base.names else {}),
        **({} if hooks is None else {"hooks": hooks.state()}),
        "before": before and before | {"window": _summed(before["window"], trainer)},
    }


def _summed(accumulator: LossAccumulator, trainer: Trainer) -> dict[str, Any]:
    """The losses since the last log line, over all ranks, as a checkpoint keeps them."""
    losses, weights = sum_over_ranks(accumulator.tensors(trainer.device), trainer.ranks.world_size)
    steps, grad_norm = list(accumulator.steps), accumulator.grad_norm
    return {"steps": steps, "losses": losses, "weights": weights, "grad_norm": grad_norm}


def adapt_state(
    state: Mapping[str, Any], total_steps: int, rules: Rules, record: "Record", every: int
) -> dict[str, Any]:
    """What of a state is another where its run shall now end elsewhere, or be judged by other rules.

    The last update of a run is evaluated and logged whatever its number. A run that goes on from there does so from
    before that, as one of the full length that never had it; one that shall end here now has it still to come.

    Args:
        state: Of a checkpoint.
        total_steps: Updates that the run is to have.
        rules: By which its evaluations are judged now.
        record: Of the run: the evaluations so far.
        every: Updates from one of them to the next.

    Returns:
        Entries in the place of those in the state.

    Raises:
        ConfigError: By these rules the run would have ended before, or the record of its evaluations is not complete.
    """
    progress, before = Progress(**state["progress"]), state.get("before")
    changed = state.get("rules", rules) != rules
    rows: list[dict[str, Any]] = []
    if changed:
        if not record.holds(state["record"]):
            raise ConfigError(
                "early_stopping, checkpoint.best: to change them takes all evaluations so far, and "
                f"{record.path} has been changed or removed. Restore it, or use the settings as they were."
            )
        rows = [
            row for row in record.rows() if row["step"] <= progress.step and any(n.startswith("eval/") for n in row)
        ]
        rows = [row for row in rows if row["step"] % every == 0 or row["step"] == total_steps]
    now = progress.judged(rows, rules) if changed else progress
    over = progress.step == total_steps or now.ended is not None
    if not progress.seen or state.get("over", over) == over:
        return {"progress": asdict(now)}
    if before is None:  # nothing was due at this step
        return {"progress": asdict(replace(now, seen=False))}
    earlier = Progress(**before["progress"])
    if changed:
        earlier = earlier.judged([row for row in rows if row["step"] < progress.step], rules)
    return before | {"progress": asdict(earlier)}


@dataclass
class ResumePoint:
    """Where a run goes on."""

    progress: Progress  # how far it had come; nothing yet, of a new run
    checkpoint: Path | None = None  # that it was read from; None of a new run
    saved: tuple[dict[str, Tensor], dict[str, Any]] | None = None  # weights and state, until a trainer has them

    def restore(self, trainer: Trainer, total_steps: int, hooks: "Hooks | None" = None) -> None:
        """Put weights and state into a trainer, and let go of them: they may be as large as it once more."""
        if self.saved is None or self.checkpoint is None:
            return
        restore(*self.saved, trainer, hooks)
        self.saved = None
        log.info("resume     from %s, at step %d of %d", self.checkpoint.name, self.progress.step, total_steps)


def find_resume_point(
    directory: Path, record: "Record", ranks: Ranks, rules: Rules, every: int, total_steps: int
) -> ResumePoint:
    """Where a run goes on, on every rank: at the newest good checkpoint, if there is one.

    Raises:
        DamagedCheckpoint: There are checkpoints, and every one of them is damaged.
        ConfigError: As for `adapt_state`.
    """
    found = by_rank_0("the checkpoints to be verified", partial(resolve_resume_checkpoint, directory), ranks)
    if found is None:
        return ResumePoint(Progress())
    weights, state = read_checkpoint(found)
    entries = partial(adapt_state, state, total_steps, rules, record, every)
    state |= by_rank_0("the record to be read", entries, ranks)
    return ResumePoint(Progress(**state["progress"]), found, (weights, state))


def best_beside(directory: Path, progress: Progress, ranks: Ranks) -> Path | None:
    """The checkpoint of the best evaluation where that was not the last update's, on every rank."""
    if progress.best_step in (None, progress.step):
        return None
    best = directory / f"step_{progress.best_step:08d}"

    def verified() -> Path | None:
        try:
            verify(best)
            return best
        except DamagedCheckpoint as error:
            why = error if best.exists() else "it was not saved"
            log.warning("The test split is measured by the last model alone, not by the best, of step %d: %s.",
                        progress.best_step, why)  # fmt: skip
            return None

    return by_rank_0("the best checkpoint to be verified", verified, ranks)


def restore(
    weights: Mapping[str, Tensor], state: Mapping[str, Any], trainer: Trainer, hooks: "Hooks | None" = None
) -> Progress:
    """Put weights of the eval model, and the rest as `gather_state` made it, into a run at any number of ranks.

    Raises:
        ConfigError: They belong beside other weights than those that the run has begun with.
    """
    trainer.base.check(state.get("base"), "this run")
    trainer.load_weights(trainer.eval_model, weights)
    if state["model"] is not None:
        trainer.load_weights(trainer.model, state["model"])
    trainer.load_optimizer_state(state["optimizer"])
    trainer.schedule.load_state_dict(state["schedule"])
    if trainer.scaler is not None and state["scaler"] is not None:
        trainer.scaler.load_state_dict(state["scaler"])
    trainer.lr = state["lr"]
    window, rank = state["window"], trainer.ranks.rank
    mine = torch.clone if rank == 0 else torch.zeros_like
    losses, weight_sums = (list(mine(window[name]).to(trainer.device).unbind()) for name in ("losses", "weights"))
    grad_norm = None if window["grad_norm"] is None else torch.clone(window["grad_norm"])
    trainer.accumulator = LossAccumulator(list(window["steps"]), losses, [*weight_sums], grad_norm)
    if state["random"] is not None and rank < len(state["random"]):
        of_rank = state["random"][rank]
        random.setstate(of_rank["python"])
        _set_numpy_state(of_rank["numpy"])
    if hooks is not None:
        hooks.restore(state.get("hooks"))
    return Progress(**state["progress"])


def go_back(directory: Path, trainer: Trainer, hooks: "Hooks | None" = None) -> Progress:
    """Return to the newest good checkpoint, on every rank; raises DamagedCheckpoint where there is none."""
    found = by_rank_0("the checkpoints to be verified", partial(resolve_resume_checkpoint, directory), trainer.ranks)
    if found is None:
        raise DamagedCheckpoint(f"there is no checkpoint in {directory} to go back to; save more often")
    return restore(*read_checkpoint(found), trainer, hooks)


def _numpy_state() -> dict[str, Any]:
    """NumPy's legacy generator in plain values: its own arrays are refused by weights_only loading."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "name": name,
        "keys": np.asarray(keys).tolist(),
        "position": position,
        "has_gauss": has_gauss,
        "gauss": float(gauss),
    }


def _set_numpy_state(state: Mapping[str, Any]) -> None:
    keys = np.array(state["keys"], dtype=np.uint32)
    np.random.set_state((state["name"], keys, state["position"], state["has_gauss"], state["gauss"]))
