"""A sweep that adds seeds until the comparison of its settings is decided, or the seeds are used up.

Looking at the results after each seed and stopping when p is small would find a difference where there is none far too
often. So the level is spent in equal parts on the looks that there may be (Lan and DeMets, Discrete Sequential
Boundaries for Clinical Trials, Biometrika 70, 1983, with a linear spending function); see `inference.sequential`.
"""

from launcher.core.errors import ConfigError
from launcher.sweep.comparison import read_sweep
from launcher.sweep.grid import Grid, GridOptions
from launcher.sweep.inference import LEAST_SEEDS
from launcher.sweep.sweep import Sweep
from launcher.sweep.trial_state import State
from launcher.sweep.trials import Trial


class Decision:
    """What a sweep starts next: each setting with three seeds, then with one more at a time; see `Executor`.

    Args:
        sweep: The sweep whose trials these are.
        grid: The settings that are compared.
        options: With `decide`, the level, and `seeds`, the most of them.
    """

    def __init__(self, sweep: Sweep, grid: Grid, options: GridOptions) -> None:
        assert options.decide is not None and options.seeds is not None, "Grid has looked"
        self.sweep, self.level, self.limit = sweep, options.decide, options.seeds
        self.settings = list(grid.trials())
        self.varying = grid.varying | {"seed"}
        self.like: Trial  # one of them, which tells what devices each takes
        self.over = False
        self._seeds = LEAST_SEEDS
        self._trials: dict[tuple[int, int], Trial] = {}  # by place of the setting, and seed
        self._under_way: set[int] = set()  # numbers of those that have been handed out

    def __str__(self) -> str:
        return f"{len(self.settings)} settings, {LEAST_SEEDS} to {self.limit} seeds each, until p < {self.level:g}"

    @property
    def coming(self) -> int:
        """See Feed: those of this look that have not been handed out."""
        return self.total - len(self._trials)

    @property
    def total(self) -> int:
        """Trials so far, and those of the seed that is asked for."""
        return len(self.settings) * self._seeds

    @property
    def compared_by(self) -> tuple[str | None, str | None]:
        """As the sweep's own comparison."""
        return self.sweep.options.metric, self.sweep.options.metric_mode

    def check(self) -> Trial:
        """Compose each setting; returns the trial of one.

        Raises:
            ConfigError: One of them is wrong, or there is nothing to compare; nothing has been started.
        """
        if len(self.settings) < 2:
            raise ConfigError(
                f"hydra.sweeper.decide={self.level:g}: compares settings, and there is one; sweep another, such as "
                "optimizer=sgd,adam."
            )
        found = []
        self.sweep.check_base([])
        for overrides in self.settings:
            try:
                found.append(self.sweep.compose_trial(0, [*overrides, "seed=0"], self.varying))
            except ConfigError as error:
                raise ConfigError(f"{' '.join(overrides)}: {error}") from error
        return found[0]

    def open(self) -> None:
        """Note what the comparison has to know of the looks."""
        self.sweep.decides = {"level": self.level, "seeds": self.limit}

    def waiting(self) -> list[Trial]:
        """None: `next` hands out what an earlier start has left."""
        return []

    def next(self) -> Trial | None:
        """The trial to start now; None where all of a look are under way, or nothing is left to do."""
        while not self.over:
            for seed in range(self._seeds):
                for place, overrides in enumerate(self.settings):
                    if (trial := self._new(place, seed, overrides)) is not None:
                        return trial
            if self._under_way:
                return None
            self.over = self._look() or self._seeds >= self.limit
            self._seeds += not self.over
        return None

    def ended(self, trial: Trial) -> None:
        """Note that a trial has ended, however."""
        self._under_way.discard(trial.index)

    def close(self) -> None:
        """Nothing is left to do: the comparison says what was decided."""

    def _new(self, place: int, seed: int, overrides: list[str]) -> Trial | None:
        """The trial of a setting and a seed; None where it has been handed out, or is finished."""
        if (place, seed) in self._trials:
            return None
        trial = self.sweep.compose_trial(len(self._trials), [*overrides, f"seed={seed}"], self.varying)
        self._trials[place, seed] = trial
        self.sweep.trials.append(trial)
        self.sweep.remember()
        if trial.state == State.FINISHED:
            return None
        self._under_way.add(trial.index)
        return trial

    def _look(self) -> bool:
        """Whether all pairs of settings are decided by what has been run."""
        pairs = read_sweep(self.sweep.path, *self.compared_by).pairs
        decided = sum(pair.decided for pair in pairs)
        print(f"look       {self._seeds} seeds: {decided} of {len(pairs)} pairs are decided", flush=True)
        return bool(pairs) and decided == len(pairs)
