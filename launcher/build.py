"""What a run is made of: built on the CPU from the config, and checked to fit together, for train.py and check.py."""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from launcher.batching.generators import seed_generators
from launcher.batching.plan import BatchPlan, plan_batch, scale_learning_rate
from launcher.batching.sampling import Sampler, build_sampler
from launcher.batching.splits import TensorSplit, suit
from launcher.core.errors import ConfigError
from launcher.data.source import Data, build_data
from launcher.distributed.ranks import Ranks
from launcher.models import adapters
from launcher.models.build import build_model, kept_facts
from launcher.optimizers.optimizer import build_optimizer
from launcher.run import gallery
from launcher.schedulers.schedule import Schedule, build_schedule
from launcher.tasks.build import build_task
from launcher.tasks.mirrored import check_mirror
from launcher.training import finetune, frozen_base, mixup, sharded, tryout
from launcher.training.batch_norm import check_alone, check_exact
from launcher.training.evaluation import check_metrics
from launcher.training.hooks import build_hooks
from launcher.training.recompute import recompute
from launcher.training.sharded import Sharding
from launcher.training.trainer import Learner
from launcher.training.tryout_task import try_task


class Parts(NamedTuple):
    """What a run is made of, on the CPU."""

    data: Data
    plan: BatchPlan
    sampler: Sampler | None  # the order of the training samples; None: shuffled, as a Stream has them by itself
    kind: Any  # of stream: one that mixes neighbours, where mixup is on
    learner: Learner
    sharding: Sharding | None  # how the devices share the model; None where each has the whole of it
    begun: list[str]  # lines about what the weights began with and what is frozen, for the log
    total_steps: int  # updates of the whole run
    hooks: list[Any]  # a person's own code beside the training

    @property
    def model(self) -> nn.Module:
        """The bare model."""
        return self.learner.model


def build(
    settings: Any,
    ranks: Ranks,
    devices: int,
    resumed: bool,
    make_model: Callable[[Callable[[], nn.Module]], nn.Module],
    tried: bool = True,
    kept: Mapping[str, Any] = {},
) -> Parts:
    """Build everything that a run is made of, and check that it fits together.

    Args:
        settings: The checked config.
        ranks: Of this run.
        devices: That share a global batch.
        resumed: Whether a checkpoint brings the weights: no other file needs to be there.
        make_model: Given what makes the model, makes it where its weights shall be.
        tried: Whether some samples are tried through all of it.
        kept: What an earlier start of the run has kept for the model; see `run_directory.kept_facts`.

    Raises:
        ConfigError: Something is wrong.
    """
    seed_generators(settings.seed)
    leaves_out = settings.divergence.action == "rollback"
    data = build_data(settings.data, leaves_out, (settings.limit_batches or 0) * settings.batch.global_size)
    if isinstance(data.train, TensorSplit) and data.train.targets.is_floating_point():
        data.train.targets = data.train.targets.float()  # once, not in each batch; what is predicted keeps its digits
    data, task = build_task(settings.task, data, settings.loss)
    shards = settings.canonical_shards if settings.exact_across_devices else None
    plan = plan_batch(len(data.train), settings.batch.global_size, devices, settings.batch.max_per_device, shards)
    sampler = build_sampler(settings.sampling, data, settings.seed, plan.global_size)
    model, begun = _begin(settings, data, resumed, make_model, kept)
    base = frozen_base.find_base(model, settings, with_digest=ranks.rank == 0)
    suit(model, *data.splits().values())
    kind = mixup.mixed(settings.mixup, data, task)
    lr_scale = scale_learning_rate(settings.batch.lr_scaling, plan.global_size, settings.batch.base_size)
    optimizer = build_optimizer(
        settings.optimizer, model, lr_scale, settings.decay_bias_and_norm, settings.layer_decay, settings.param_groups
    )
    total_steps = min(settings.epochs * plan.steps_per_epoch, settings.max_steps or sys.maxsize)
    schedule = build_schedule(settings.scheduler, optimizer, total_steps, plan.steps_per_epoch)
    recompute(model, settings.activation_checkpointing or [])
    if shards is not None:
        check_exact(model)
    check_alone(model, data, plan, settings.batch.max_per_device, total_steps)
    cut = _cut(plan, devices, settings.batch.max_per_device)
    elsewhere = settings.strategy.name == "fsdp" and settings.strategy.meta_init and ranks.world_size > 1
    how = tryout.How(settings.num_workers, cut, elsewhere, leaves_out)
    with adapters.all_called(model):
        seen = try_task(model, task, data, partial(kind, sampler=sampler), how) if tried else None
    check_metrics(task, settings.metrics, _wanted_metrics(settings, schedule), seen)
    if settings.test_time_flip:
        check_mirror(data, task)
    if settings.wandb.tables:
        gallery.check(data, task)
    hooks = build_hooks(settings.hooks, data.facts())
    sharding = sharded.plan_sharding(settings.strategy, model, ranks)
    return Parts(
        data, plan, sampler, kind, Learner(model, task, optimizer, schedule, base), sharding, begun, total_steps, hooks
    )


def _begin(
    settings: Any,
    data: Data,
    resumed: bool,
    make_model: Callable[[Callable[[], nn.Module]], nn.Module],
    kept: Mapping[str, Any],
) -> tuple[nn.Module, list[str]]:
    """The model with the weights that it begins with, and lines about them; arguments as for `build`."""
    if frozen_base.leaves_out(settings.adapter):  # the weights that no checkpoint holds, by the same road as at first
        resumed, kept = False, {}
    facts = data.facts() | dict(kept)
    model = make_model(lambda: build_model(settings.model, facts, begins=not resumed))
    data.model_facts |= kept_facts(model)
    sources = {} if resumed else finetune.sources_of(settings)
    if (line := getattr(model, "begun_with", "")) and settings.init_from is not None:
        raise ConfigError("init_from and model.name: both name weights to begin with. Set model.weights=false.")
    begun = [f"weights    {line}"] if line else []
    put = partial(adapters.adapt, settings=settings.adapter, facts=facts)
    begun += finetune.begin(model, sources, facts["num_outputs"], settings.freeze, put)
    return model, begun


def _wanted_metrics(settings: Any, schedule: Schedule) -> dict[str, str | None]:
    """The metrics of an evaluation that settings choose by, by setting; of a run that never evaluates, none.

    Raises:
        ConfigError: The learning rate follows one, and the run never evaluates.
    """
    if settings.eval_every is not None:
        return {
            "checkpoint.best": settings.checkpoint.best,
            "scheduler.metric": schedule.metric,
            "early_stopping.metric": settings.early_stopping.metric,
        }
    if schedule.metric is not None:
        raise ConfigError(
            f"scheduler.metric={schedule.metric}: eval_every=null never evaluates, and the learning rate would stay. "
            "Use eval_every=epoch, or another scheduler."
        )
    return {}


def _cut(plan: BatchPlan, devices: int, most: int | str | None) -> str | None:
    """The setting by which a device sees a part of a global batch at once, if any."""
    if plan.canonical:
        return "exact_across_devices"
    if devices > 1:
        return f"a run on {devices} devices"
    return f"batch.max_per_device={most}" if most == "auto" or plan.accumulation_steps > 1 else None
