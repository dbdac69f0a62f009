"""Every setting: its type and range, one line of documentation, what its absence means, what may differ on resume.

Defaults stand in conf/ alone. Importing this takes a tenth of a second (pydantic), so what is answered without a check,
such as --help and --cfg, does without.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, StringConstraints

from launcher.config.groups import Adapter, Data, Loss, Model, Optimizer, Scheduler, Strategy, Task
from launcher.config.setting import (
    Auto,
    Count,
    CountOrZero,
    Duration,
    Every,
    Fraction,
    HookList,
    MetricList,
    Mode,
    NotNegative,
    Off,
    ParameterPatterns,
    ParamGroups,
    Positive,
    ProjectName,
    RunId,
    Section,
    Setting,
    Share,
    Tags,
    Text,
    Words,
    argument,
    flat,
    setting,
)

SplitName = Literal["train", "validation", "test"]
Tracker = Literal[  # those after csv are Accelerate's, which takes their names as they are
    "wandb", "tensorboard", "csv", "mlflow", "trackio", "comet_ml", "aim", "clearml", "dvclive", "swanlab"
]
OwnTracker = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")]
Device = Literal["auto", "cpu", "shared"]


class EarlyStopping(Section):
    """When a run ends before its last epoch."""

    main, instead = "metric", "early_stopping.metric=null switches it off"

    metric: Text | None = setting("Metric whose end of improvement ends the run, such as eval/loss; null: never.", None)
    mode: Mode = setting("Whether less (min) or more (max) of the metric is better.", "min")
    patience: Count = setting("Evaluations in a row without improvement that end the run.", 5)
    min_delta: NotNegative = setting("Smallest change that counts as an improvement.", 0)


class Mixup(Section):
    """Mixing of each sample with its neighbour in the global batch."""

    main, instead = "alpha", "mixup.alpha=0 and mixup.cutmix_alpha=0 switch it off"

    alpha: NotNegative = setting("Mixup: shares of the two samples come from Beta(alpha, alpha); 0: off.", 0)
    cutmix_alpha: NotNegative = setting("Cutmix: a box of the neighbour's image takes the image's place; 0: off.", 0)
    prob: Share = setting("Share of the updates that mix.", 1)
    switch_prob: Share = setting("Share of these that use cutmix, where both are on.", 0.5)


class Divergence(Section):
    """What happens at a loss or gradient that is NaN or infinite."""

    main, instead = "action", "divergence.action=stop ends the run at the first one"

    action: Literal["stop", "rollback"] = setting(
        "At a loss or gradient that is NaN or infinite: stop, or go back and leave the batch out.",
        "stop",
        may_differ=True,
    )
    max_rollbacks: Count = setting("Times that a run may go back.", 3, may_differ=True)


class Checkpoint(Section):
    """Checkpoints."""

    main, instead = "every", "checkpoint.every=null saves at the end alone"

    every: Every = setting(
        "Updates between two checkpoints, or epoch; null: at the end alone.", "epoch", may_differ=True
    )
    keep: Count = setting("Number of newest checkpoints that are kept, beside the best.", 2, may_differ=True)
    best: Text | None = setting("Metric that names the best checkpoint; null keeps none.", "eval/loss", may_differ=True)
    best_mode: Mode = setting("Whether less (min) or more (max) of that metric is better.", "min", may_differ=True)
    max_failures: CountOrZero = setting(
        "Saves in a row that may fail (a full disk) before the run ends.", 3, may_differ=True
    )


class Batch(Section):
    """The global batch."""

    main, instead = "global_size", "batch.global_size=64 is the number of samples per update"

    global_size: Count = setting("Number of samples per optimizer update, on all devices together.")
    max_per_device: Count | Auto | None = setting(
        "Most samples that a device sees at once: a share above that is cut into micro-batches; auto measures it.",
        None,
        may_differ=True,
    )
    lr_scaling: Literal["none", "linear", "sqrt"] = setting(
        "How the learning rate follows the global batch size.", "none"
    )
    base_size: Count = setting("Global batch size that the learning rate was tuned at.", 64)


class Wandb(Section):
    """Weights & Biases."""

    main, instead = "mode", "wandb.mode=disabled switches it off"

    mode: Literal["auto", "online", "offline", "disabled"] = setting(
        "Auto is online where a key is configured, else offline.", "auto", may_differ=True
    )
    project: ProjectName | None = setting("Project; null: WANDB_PROJECT, else launcher.", None, may_differ=True)
    entity: Text | None = setting("User or team; null: WANDB_ENTITY, else your own.", None, may_differ=True)
    id: RunId | None = setting(
        "Id of the run; null: WANDB_RUN_ID, else a new one, which the run directory keeps.", None, may_differ=True
    )
    name: Text | None = setting("Name of the run; null: WANDB_NAME, else the run directory's.", None, may_differ=True)
    group: Text | None = setting("Group of the run; null: WANDB_RUN_GROUP.", None, may_differ=True)
    tags: Tags = setting("Tags of the run.", [], may_differ=True)
    artifacts: Off | Literal["best", "all"] = setting(
        "Checkpoints uploaded as artifacts: the best one when the run ends, or all that are kept.",
        False,
        may_differ=True,
    )
    watch: Off | Literal["gradients", "parameters", "all"] = setting(
        "Histograms of gradients or parameters, as wandb.watch has them.", False, may_differ=True
    )
    watch_every: Count = setting("Updates between two of these histograms.", 100, may_differ=True)
    tables: CountOrZero = setting(
        "Rows of a table of test samples with their predictions, at the end.", 0, may_differ=True
    )
    code: bool = setting("Uploads this package, your own modules and the state of git.", False, may_differ=True)


class Train(Section):
    """Settings of a training run."""

    data: Data = setting("Data source: data=digits.")
    task: Task = argument("Task: task=auto is that of the data.")
    model: Model = setting("Model: model=mlp.")
    adapter: Adapter = argument("Adapter: adapter=none or lora.")
    loss: Loss = setting("Loss: loss=auto is that of the task.")
    optimizer: Optimizer = setting("Optimizer: optimizer=sgd.")
    scheduler: Scheduler = setting("Learning rate schedule: scheduler=cosine.")
    batch: Batch = argument("Global batch: batch=default.")
    strategy: Strategy = argument("How devices share the work: strategy=ddp or fsdp.")

    epochs: Count = setting("Passes over the training split.", may_differ=True)
    max_steps: Count | None = setting(
        "Optimizer updates that end the run, where they come first.", None, may_differ=True
    )
    limit_batches: Count | None = setting("Global batches that are kept of each split; null: all.", None)
    max_time: Duration | None = setting(
        "Time that ends the run, with everything saved: seconds, or 90m, 12h, 2d.", None, may_differ=True
    )
    early_stopping: EarlyStopping = argument("When a run ends before its last epoch.")

    init_from: Text | None = setting(
        "Weights to begin with: weights.safetensors, weights.pt or a run directory (its best checkpoint).", None
    )
    freeze: ParameterPatterns = setting("Patterns of the parameters that stay as they are.", [])
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = setting(
        "Layer-wise learning-rate decay: each layer learns at this times the rate of the next deeper one.", None
    )
    param_groups: ParamGroups = setting(
        "Parameters with a learning rate or weight decay of their own, by patterns of names; the last match counts.", []
    )

    seed: CountOrZero = setting("Names the order of samples, the augmentation, the initial weights and dropout.")
    mixed_precision: Literal["no", "bf16", "fp16"] = setting("Precision of forward and backward; no is float32.", "no")
    sampling: Literal["shuffle", "balanced", "group_by_length", "blocked"] = setting(
        "Each sample once an epoch; each class equally often; or once, by length, or shard by shard.",
        "shuffle",
    )
    clip_grad_norm: Positive | None = setting("Largest norm of the gradient; null never clips.", None)
    clip_grad_value: Positive | None = setting("Largest absolute value of each element of the gradient.", None)
    log_grad_norm: bool = setting(
        "Records the norm of the gradient also where it is not clipped.", False, may_differ=True
    )
    activation_checkpointing: Annotated[
        Off | Annotated[list[Text], Field(min_length=1)],
        Words("false, or a list of patterns of module names, such as [layers.*]"),
    ] = setting("Modules whose activations are computed again in the backward: less memory.", False, may_differ=True)
    ema_decay: Fraction | None = setting(
        "Decay of an EMA model, which is then evaluated and exported: 0.999; null: none.", None
    )
    decay_bias_and_norm: bool = setting("Whether weight decay applies to biases and normalization layers.", True)
    float32_matmul_precision: Literal["highest", "high", "medium"] = setting(
        "Precision of float32 products: high is TF32 on GPUs, medium bfloat16 on a CPU.", "highest"
    )
    compile: bool = setting("Whether torch.compile compiles the model.", False)
    channels_last: bool = setting("Lays images out with their channels last; convolutions are often faster so.", False)
    deterministic: bool = setting("The same bits again, by torch's deterministic kernels.", True)
    mixup: Mixup = argument("Mixing of each sample with its neighbour in the global batch.")
    exact_across_devices: bool = setting(
        "The same bits on any number of devices that divides canonical_shards, at a cost.", False
    )
    canonical_shards: Count = setting("Parts that exact_across_devices cuts each global batch into.", 4)
    divergence: Divergence = argument("What happens at a loss or gradient that is NaN or infinite.")

    device: Device = setting(
        "Auto: GPUs where there are any; cpu; shared: a try, processes share a GPU.", "auto", may_differ=True
    )
    threads: Count | Auto = setting("CPU threads per process; auto shares the cores.", "auto", may_differ=True)
    num_workers: CountOrZero | Auto = setting(
        "Processes per device that load data which is not held in memory; auto: as many as help.",
        "auto",
        may_differ=True,
    )
    timeout: Positive = setting("Seconds until the watchdog takes a silent process for hung.", 600, may_differ=True)

    check: Annotated[bool | CountOrZero, Words("true, false, or a number of devices to plan for")] = setting(
        "Builds and plans everything, times a few steps, says what the run will need, and ends.", False, may_differ=True
    )
    profile: bool = setting("A trace of five steps, trace.json in the run directory.", False, may_differ=True)

    log_every: Count | Literal["epoch"] = setting(
        "Updates between two rows of the record, or epoch.", 20, may_differ=True
    )
    eval_every: Every = setting("Updates between two evaluations, or epoch; null: never.", "epoch")
    test_time_flip: bool = setting("Measures the test split by the mean over an image and its mirror.", False)
    metrics: MetricList = setting("torchmetrics by name, beside the metrics that the task has.", [])
    checkpoint: Checkpoint = argument("When checkpoints are saved, and which are kept.")
    hooks: HookList = setting(
        "Code of your own that is called after updates, evaluations and at the end.", [], may_differ=True
    )
    pruning: Annotated[dict[str, Any], Words("null; hydra/sweeper=optuna sets it")] | None = setting(
        "Set by hydra/sweeper=optuna: how its trials are compared, and the worse ones ended early.",
        None,
        may_differ=True,
    )
    trackers: Annotated[
        list[Tracker | OwnTracker],
        Words(f"a list of {', '.join(get_args(Tracker))} or classes of your own, such as trackers=[wandb,csv]"),
    ] = setting("Where metrics are shown: tensorboard in tb/, csv in metrics.csv.", ["wandb"], may_differ=True)
    wandb: Wandb = argument("Weights & Biases.")


class RateRange(Section):
    """The range of a learning rate test."""

    main, instead = "max", "find_lr.max=1 is the largest rate"

    min: Positive = setting("First learning rate.")
    max: Positive = setting("Last learning rate, where the loss has not grown fourfold before.")
    steps: Annotated[int, Field(ge=10)] = setting("Updates from the first to the last.")


class FindLr(Train):
    """Settings of a learning rate range test: those of a training run, and the range."""

    find_lr: RateRange = setting("Range of learning rates.")


MEASURED_SPLIT: Any = setting("Split of the run's own data: train, validation or test.")


class SavedRun(Section):
    """What the commands have in common that take up a run."""

    run_dir: Text = setting("The run directory.")
    checkpoint: CountOrZero | Literal["auto", "best", "last"] = setting(
        "Auto: the best checkpoint where one is kept, else the last; best, last, or a step."
    )
    input: Annotated[Text | Annotated[list[Text], Field(min_length=1)], Words("a file or a folder")] | None = setting(
        "Samples from elsewhere: a table, an image, a folder of images, or a text file that lists images."
    )
    data: Annotated[dict[str, Any], Words("settings of the data source, such as data.root=/other/place")] = setting(
        "With part: other settings for the run's data source, such as data.root=/other/place."
    )
    batch_size: Count = setting("Samples that a device sees at once.")
    threads: Count | Auto = setting("CPU threads per process; auto shares the cores.")
    num_workers: CountOrZero | Auto = setting("Processes that load data which is not held in memory.")


class Evaluate(SavedRun):
    """Settings of `launcher evaluate`."""

    part: SplitName = MEASURED_SPLIT
    output: Text | None = setting("File for the metrics; null: evaluation_PART.json in the run directory.")
    metrics: MetricList = setting("torchmetrics by name, beside those of the run.")
    test_time_flip: bool | None = setting("Mean of the outputs for an image and its mirror; null: as the run did.")
    device: Device = setting("Auto, cpu, or shared: processes share a GPU.")
    timeout: Positive = setting("Seconds until the watchdog takes a silent process for hung.")


class Predict(SavedRun):
    """Settings of `launcher predict`."""

    part: SplitName | None = setting("In place of input: a split of the run's own data.")
    output: Text = setting("File for the predictions.")
    device: Device = setting("Auto or cpu.")


Format = Literal["safetensors", "torch_export", "onnx", "adapter"]


class Export(SavedRun):
    """Settings of `launcher export`."""

    part: SplitName = MEASURED_SPLIT
    format: Annotated[
        Format | Annotated[list[Format], Field(min_length=1)],
        Words("formats, one or several of safetensors, torch_export, onnx, adapter"),
    ] = setting("Format, or several: format=[safetensors,onnx].")
    output: Text = setting("A new directory for the model.")
    tolerance: NotNegative = setting("Largest difference of an output between the exported model and the original.")


class Rerun(Section):
    """Settings of `launcher rerun`."""

    run_dir: Text = setting("The run directory.")
    output: Text | None = setting("Directory of the new run; null: RUN_DIR-rerun.")
    dry_run: bool = setting("Only says what differs now.")


MODELS: dict[str, type[Section]] = {  # by the name of the primary config
    "train": Train,
    "find_lr": FindLr,
    "evaluate": Evaluate,
    "predict": Predict,
    "export": Export,
    "rerun": Rerun,
}
SCHEMAS: dict[str, dict[str, Setting]] = {name: dict(flat(model)) for name, model in MODELS.items()}
SCHEMA = SCHEMAS["train"]
# What no launcher ever was without.
FOUNDING = tuple(key for key, known in SCHEMA.items() if known.required)
# What may differ when a run directory is started again, because the result does not depend on it.
MAY_DIFFER_ON_RESUME = (
    *(key for key, known in SCHEMA.items() if known.marked("may_differ")),
    *(
        key
        for key, known in SCHEMA.items()
        if known.section and all(one.marked("may_differ") for _, one in flat(known.section))
    ),
    "cluster",
)
