"""The settings of the groups whose options a person picks by name; those of the rest are in schema.py."""

from typing import Annotated, Any, Literal

from pydantic import Field

from launcher.config.setting import (
    Component,
    Count,
    CountOrZero,
    Fraction,
    NotNegative,
    Positive,
    Section,
    Share,
    Text,
    Words,
    argument,
    setting,
)

Widths = Annotated[list[Count], Words("a list of whole numbers of at least 1")]


class Optimizer(Component):
    """A torch.optim.Optimizer."""

    instead = "optimizer=sgd picks one"

    lr: Positive = argument("Learning rate.")
    momentum: Fraction = argument("Momentum.")
    weight_decay: NotNegative = argument(
        "Weight decay: as a part of the gradient, or decoupled in adamw, lion and muon."
    )
    nesterov: bool = argument("Nesterov's momentum.")
    eps: NotNegative = argument("Added to a denominator that could be 0.")
    adamw_lr: NotNegative | None = argument("Learning rate of the part of the parameters that muon leaves to AdamW.")
    fused: bool | None = argument("Torch's fused kernels; null: where torch has them.")
    foreach: bool | None = argument("Torch's kernels over lists of parameters; null: as torch chooses.")


class Loss(Component):
    """A loss, which gives one value per sample."""

    instead = "loss=cross_entropy picks one"

    label_smoothing: Fraction = argument("Share of each target that is spread evenly over all classes.")
    gamma: NotNegative = argument("Focus of the focal loss on hard samples; 0 is cross-entropy.")


class Task(Component):
    """What is learned, and what an evaluation counts."""

    instead = "task=auto is that of the data"


class Scheduler(Component):
    """A learning rate schedule of torch.optim.lr_scheduler."""

    instead = "scheduler=constant leaves the learning rate as it is"

    interval: Literal["epoch", "step"] = argument("What the schedule counts: epochs, or steps (optimizer updates).")
    warmup: Any = argument(
        "Linear warmup that comes first: updates (500), a share of the run (0.05), 2epochs or 100steps."
    )


class Strategy(Section):
    """How devices share the work."""

    instead = "strategy=ddp picks the usual one"

    name: Literal["ddp", "fsdp"] = setting("DistributedDataParallel, or FSDP2 (fully sharded).", "ddp", may_differ=True)
    find_unused_parameters: bool = setting(
        "True where some parameters take no part in some steps.", False, may_differ=True, only="ddp"
    )
    gradient_as_bucket_view: bool = setting(
        "Gradients live in DDP's buckets: one copy less.", True, may_differ=True, only="ddp"
    )
    static_graph: bool = setting("True where every step uses the same parameters.", False, may_differ=True, only="ddp")
    compress: Literal["bf16", "fp16"] | None = setting(
        "Gradients travel in half precision; the result then depends on the number of devices.", None, only="ddp"
    )
    bucket_cap_mb: Positive = argument("Size of DDP's buckets of gradients, in MB.")
    broadcast_buffers: bool = argument("Whether DDP sends rank 0's buffers to the others before each forward.")
    block: Text | None = setting(
        "Class of the repeated block, whose parameters are gathered together; null finds it.",
        None,
        may_differ=True,
        only="fsdp",
    )
    reshard_after_forward: bool = setting(
        "False keeps gathered parameters until the backward: less traffic, more memory.",
        True,
        may_differ=True,
        only="fsdp",
    )
    accumulate_whole: bool = setting(
        "True: micro-batches add up a whole gradient on each device, which travels once.",
        False,
        may_differ=True,
        only="fsdp",
    )
    meta_init: bool = setting(
        "False: each process builds the whole model in host memory first.", True, may_differ=True, only="fsdp"
    )


class Data(Component):
    """A data source: its training, validation and test splits."""

    instead = "data=digits picks one"

    validation: Fraction = argument("Share of the training samples that is held out for choices.")
    test: Fraction = argument("Share of all samples that is measured once, at the end.")
    split_seed: CountOrZero = argument("Names which samples are held out.")
    block: Count = argument("Tokens that a language model sees at once.")
    random_erasing: Share = argument("Share of the training images in which a rectangle is painted over.", 0.0)
    augment: Any = argument("Changes of training images: none, light, randaugment or trivial.", "none")
    validation_folders: Any = argument(
        "Names of the folder with the validation images.", ["validation", "val", "valid", "dev"]
    )
    test_folders: Any = argument("Names of the folder with the test images.", ["test", "testing"])
    on_error: Any = argument("Images that cannot be read: stop, skip, or null: they are not looked for.", None)
    tokenizer: Any = argument("Of text: tokenizer.json, or a directory with one; null: byte by byte.", None)
    max_tokens: Count = argument("Tokens of a text, of which each is a sample; longer ones are cut off.", 512)
    dtype: Any = argument("Type of a token where a file does not say it: uint16, uint32, ...")
    vocabulary: Any = argument("Number of tokens that there are; null: as the tokenizer or a header says.")
    classes: Any = argument("Number of classes; null: the classes of all rows are read at the start.", None)
    open: Any = argument("Shards of a split that a process maps at once, and that sampling=blocked mixes.")
    field: Any = argument(
        "Field of each row of JSON Lines that holds its text; null: files are texts as they are.", None
    )
    end_of_text: Any = argument("Token between two documents; auto: the tokenizer's own; null: none.", "auto")
    cache: Any = argument("Directory for the encoded text; null: in ~/.cache/launcher.", may_differ=True)


class Model(Component):
    """A torch.nn.Module."""

    instead = "model=mlp picks one"

    hidden: Widths = argument("Widths of the hidden layers.")
    dropout: Fraction = argument("Share of the activations that dropout sets to 0 in training.")
    drop_rate: Fraction = argument("The same, as timm calls it.")


Patterns = Annotated[list[Text], Field(min_length=1)]


class Adapter(Section):
    """A few parameters that are trained beside a model's own, which stay."""

    instead = "adapter=none or adapter=lora picks one"

    name: Literal["none", "lora"] = setting("None, or LoRA (Hu et al. 2021).", "none")
    rank: Count = setting("Rank of the update of a layer.", 8, only="lora")
    alpha: Positive = setting("An update is multiplied by this over the rank.", 16, only="lora")
    dropout: Fraction = setting("Share of a layer's inputs that dropout hides from its update.", 0.0, only="lora")
    target_modules: Annotated[
        Literal["all-linear"] | Patterns, Words("all-linear, or a list of patterns of module names")
    ] = setting("Layers that are adapted; all-linear: every linear one but the last.", "all-linear", only="lora")
    modules_to_save: Annotated[
        Annotated[list[Text], Field()] | None, Words("a list of patterns of module names, or null")
    ] = setting("Modules that are trained whole; null: the last layer, but of a language none.", None, only="lora")
    only: bool = setting("Checkpoints leave out what stays as it was read from a file.", False, only="lora")
