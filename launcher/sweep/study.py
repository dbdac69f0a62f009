"""A study of Optuna in the directory of a sweep: which values come next, and what became of those before.

The journal is what Optuna's own tools read: JournalStorage(JournalFileBackend("SWEEP/study.log")). One process writes
it, the one that holds the lock of the sweep, and each line of it is a whole step, so a kill loses none and makes none
twice. What a sampler says depends on the seed, the number of the trial and the results until then, not on what the
process has done before: a search that was killed goes on as it would have.
"""

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from launcher.core.errors import ConfigError
from launcher.sweep.space import Space
from launcher.sweep.sweep import SEARCH

FILE, NAME = SEARCH, "search"
UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)
OF_STUDY = "launcher:study"  # attribute of a trial: those of the study that its sampler left
SAMPLERS = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "qmc": optuna.samplers.QMCSampler,
    "gp": optuna.samplers.GPSampler,
}


class _Held:
    """The lock of the journal: that of the sweep, which this process holds. Optuna's own outlive a SIGKILL."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


class Study:
    """The trials of a search, by number.

    Args:
        path: Directory of the sweep, whose lock this process holds.
        space: What is chosen from.
        sampler: One of SAMPLERS.
        options: Further arguments of its class.
        seed: Of the sampler.
        modes: Min or max, one for each objective.
        described: What makes this search the same as that of another start, by name.

    Raises:
        ConfigError: The directory has another search, or the sampler does not take its arguments.
    """

    def __init__(
        self,
        path: Path,
        space: Space,
        sampler: str,
        options: Mapping[str, Any],
        seed: int,
        modes: Sequence[str],
        described: Mapping[str, Any],
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.sampler, self.options, self.seed = space, sampler, dict(options), seed
        self._directions = [StudyDirection.MINIMIZE if mode == "min" else StudyDirection.MAXIMIZE for mode in modes]
        self._sampler_of(0)
        self._storage = _journal(path / FILE)
        known = any(study.study_name == NAME for study in self._storage.get_all_studies())
        begin = (
            self._storage.get_study_id_from_name if known else partial(self._storage.create_new_study, self._directions)
        )
        self._id = begin(NAME)
        before = self._storage.get_study_user_attrs(self._id).get("search")
        if before is None:
            self._storage.set_study_user_attr(self._id, "search", dict(described))
        elif changed := [name for name in described if before.get(name) != described[name]]:
            lines = [f"\n  {name}: {before.get(name)} -> {described[name]}" for name in changed]
            raise ConfigError(
                f"hydra.sweep.dir={path}: holds another search:{''.join(lines)}\n"
                "Use what it was begun with, or another hydra.sweep.dir."
            )

    @property
    def trials(self) -> list[FrozenTrial]:
        """All of them, by number."""
        found: list[FrozenTrial] = self._storage.get_all_trials(self._id, deepcopy=False)
        return found

    def ask(self, unfinished: Mapping[int, tuple[bool, Sequence[float]]]) -> FrozenTrial:
        """Choose the values of the next trial, and write them down.

        Args:
            unfinished: Of trials that are not told yet: whether they were pruned, and their evaluations so far.
        """
        history = [self._as_it_stands(trial, *unfinished.get(trial.number, (False, ()))) for trial in self.trials]
        storage = InMemoryStorage()
        study_id = storage.create_new_study(self._directions, NAME)
        for trial in history:
            storage.create_new_trial(study_id, trial)
        if history:
            for key, value in history[-1].system_attrs.get(OF_STUDY, {}).items():
                storage.set_study_system_attr(study_id, key, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental features of Optuna, and what a search of its own knows
            study = optuna.load_study(study_name=NAME, storage=storage, sampler=self._sampler_of(len(history)))
            study.ask(self.space.distributions)
        asked = storage.get_all_trials(study_id)[-1]
        attributes = asked.system_attrs | {OF_STUDY: storage.get_study_system_attrs(study_id)}
        chosen = create_trial(
            state=TrialState.RUNNING,
            params=asked.params,
            distributions=asked.distributions,
            system_attrs=attributes,
        )
        self._storage.create_new_trial(self._id, chosen)
        return self.trials[-1]

    def add(self, values: Mapping[str, Any], results: Sequence[float], source: str) -> bool:
        """Take up what another sweep has found; False where the space does not have those values."""
        try:
            trial = create_trial(
                params=dict(values),
                distributions=self.space.distributions,
                values=list(results),
                user_attrs={"from": source},
            )
        except ValueError:
            return False
        self._storage.create_new_trial(self._id, trial)
        return True

    def tell(
        self,
        number: int,
        results: Sequence[float] | None,
        curve: Sequence[float] = (),
        why: str = "",
        pruned: bool = False,
    ) -> None:
        """Note how a trial ended; once, and for good.

        Args:
            number: Which.
            results: Its objectives; None of one that failed or was pruned.
            curve: Evaluation by evaluation.
            why: What its attribute `why` says.
            pruned: Whether it was pruned.
        """
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
        for evaluation, value in enumerate(curve, start=1):
            if not math.isnan(value):
                self._storage.set_trial_intermediate_value(trial_id, evaluation, value)
        if why:
            self._storage.set_trial_user_attr(trial_id, "why", why)
        state = TrialState.PRUNED if pruned else TrialState.FAIL if results is None else TrialState.COMPLETE
        values = curve[-1:] if pruned and curve and not math.isnan(curve[-1]) else results
        self._storage.set_trial_state_values(trial_id, state, list(values) if values else None)

    def _as_it_stands(self, trial: FrozenTrial, pruned: bool, curve: Sequence[float]) -> FrozenTrial:
        """A trial as a sampler shall see it: one that waits for its promotion is pruned, for all that is known."""
        if trial.state not in UNFINISHED:
            return trial
        return create_trial(
            state=TrialState.PRUNED if pruned else TrialState.RUNNING,
            params=trial.params,
            distributions=trial.distributions,
            system_attrs=trial.system_attrs,
            intermediate_values=dict(enumerate(curve, start=1)),
        )

    def _sampler_of(self, number: int) -> Any:
        """The sampler of a trial: its generator begins anew with each, else a kill would change what follows."""
        derived = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0]) % 2**31
        options = {"seed": derived} | self.options
        if self.sampler == "qmc":  # a sequence, of which the study counts how far it has come
            options |= {"seed": self.seed, "scramble": True, "warn_asynchronous_seeding": False}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return SAMPLERS[self.sampler](**options)
        except (TypeError, ValueError, ImportError) as error:
            raise ConfigError(f"hydra.sweeper.sampler={self.sampler}: {error}") from error


def _journal(file: Path) -> JournalStorage:
    """Open a journal, or begin one; a ConfigError where it cannot be."""
    lock: Any = _Held()
    try:
        cut_torn_line(file)
        with file.open("ab"):  # Optuna's own would notice only at the first trial
            pass
        return JournalStorage(JournalFileBackend(str(file), lock_obj=lock))
    except OSError as error:
        raise ConfigError(f"{file}: the search cannot be written there ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file}: is no journal of a search, or a damaged one. Use another hydra.sweep.dir."
        ) from error


def cut_torn_line(file: Path) -> None:
    """Leave out the end of a line that a kill, or a full disk, has torn."""
    if file.exists() and (content := file.read_bytes()) and not content.endswith(b"\n"):
        with file.open("r+b") as handle:
            handle.truncate(content.rfind(b"\n") + 1)
            os.fsync(handle.fileno())
