"""The schema: what each setting may be, and what a config means that was made before there was it."""

from typing import Any

from launcher.config.rules import (
    ANYTHING,
    FLAG,
    TEXT,
    Rule,
    _is_number,
    above,
    at_least,
    between,
    list_of,
    one_of,
    parse_duration,
    section,
    share,
    text_without,
    whole,
)

WATCHED = ("gradients", "parameters", "all")
EVERY = whole(1).or_word("epoch").or_null()
SCHEMA: dict[str, Rule] = {
    "epochs": whole(1),
    "max_steps": whole(1).or_null().neutral(None),
    "max_time": Rule(lambda v: parse_duration(v) is not None, 'seconds above 0, or a text such as "90m"')
    .or_null()
    .neutral(None),
    "seed": whole(0),
    "mixed_precision": one_of("no", "bf16", "fp16").neutral("no"),
    "clip_grad_norm": above(0).or_null().neutral(None),
    "clip_grad_value": above(0).or_null().neutral(None),
    "log_grad_norm": FLAG.neutral(False),
    "ema_decay": between(0, 1).or_null().neutral(None),
    "init_from": TEXT.or_null().neutral(None),
    "freeze": list_of(TEXT, "patterns of parameter names, such as [layers.0.*]").neutral([]),
    "layer_decay": Rule(lambda v: _is_number(v) and 0 < v <= 1, "a number above 0 and at most 1")
    .or_null()
    .neutral(None),
    "activation_checkpointing": Rule(
        lambda v: v is False or (isinstance(v, list) and v != [] and all(TEXT.fits(name) for name in v)),
        "false, or a list of patterns of module names, such as [layers.*]",
    ).neutral(False),
    "sampling": one_of("shuffle", "balanced").neutral("shuffle"),
    "early_stopping": section("early_stopping.metric", "early_stopping.metric=null switches it off"),
    "early_stopping.metric": TEXT.or_null().neutral(None),
    "early_stopping.mode": one_of("min", "max").neutral("min"),
    "early_stopping.patience": whole(1).neutral(5),
    "early_stopping.min_delta": at_least(0).neutral(0),
    "mixup": section("mixup.alpha", "mixup.alpha=0 and mixup.cutmix_alpha=0 switch it off"),
    "mixup.alpha": at_least(0).neutral(0),
    "mixup.cutmix_alpha": at_least(0).neutral(0),
    "mixup.prob": share().neutral(1),
    "mixup.switch_prob": share().neutral(0.5),
    "test_time_flip": FLAG.neutral(False),
    "exact_across_devices": FLAG.neutral(False),
    "canonical_shards": whole(1).neutral(4),
    "divergence": section("divergence.action", "divergence.action=stop ends the run at the first one"),
    "divergence.action": one_of("stop", "rollback").neutral("stop"),
    "divergence.max_rollbacks": whole(1).neutral(3),
    "decay_bias_and_norm": FLAG.neutral(True),
    "compile": FLAG.neutral(False),
    "channels_last": FLAG.neutral(False),
    "profile": FLAG.neutral(False),
    "check": Rule(
        lambda v: isinstance(v, bool | int) and v >= 0, "true, false, or a number of devices to plan for"
    ).neutral(False),
    "float32_matmul_precision": one_of("highest", "high", "medium").neutral("highest"),
    "deterministic": FLAG.neutral(True),
    "device": one_of("auto", "cpu", "shared").neutral("auto"),
    "threads": whole(1).or_word("auto").neutral("auto"),
    "num_workers": whole(0).or_word("auto").neutral("auto"),
    "timeout": above(0).neutral(600),
    "log_every": whole(1).or_word("epoch").neutral(20),
    "eval_every": EVERY.neutral("epoch"),
    "metrics": Rule(lambda v: isinstance(v, list), "a list of torchmetrics names, such as [AUROC]").neutral([]),
    "checkpoint": section("checkpoint.every", "checkpoint.every=null saves at the end alone"),
    "checkpoint.every": EVERY.neutral("epoch"),
    "checkpoint.keep": whole(1).neutral(2),
    "checkpoint.best": TEXT.or_null().neutral("eval/loss"),
    "checkpoint.best_mode": one_of("min", "max").neutral("min"),
    "checkpoint.max_failures": whole(0).neutral(3),
    "batch": section("batch.global_size", "batch.global_size=64 is the number of samples per update"),
    "batch.global_size": whole(1),
    "batch.max_per_device": whole(1).or_word("auto").or_null().neutral(None),
    "batch.lr_scaling": one_of("none", "linear", "sqrt").neutral("none"),
    "batch.base_size": whole(1).neutral(64),
    "optimizer": section("", "optimizer=sgd picks one"),
    "optimizer.lr": above(0),
    "optimizer.momentum": between(0, 1),
    "optimizer.weight_decay": at_least(0),
    "optimizer.nesterov": FLAG,
    "optimizer.eps": at_least(0),
    "loss": section("", "loss=cross_entropy picks one"),
    "loss.label_smoothing": between(0, 1),
    "loss.gamma": at_least(0),
    "scheduler": section("", "scheduler=constant leaves the learning rate as it is"),
    "scheduler.interval": one_of("epoch", "step"),
    "strategy": section("", "strategy=ddp picks the usual one"),
    "strategy.name": one_of("ddp", "fsdp").neutral("ddp"),
    "strategy.find_unused_parameters": FLAG.neutral(False),
    "strategy.gradient_as_bucket_view": FLAG.neutral(True),
    "strategy.static_graph": FLAG.neutral(False),
    "strategy.compress": one_of("bf16", "fp16").or_null().neutral(None),
    "strategy.bucket_cap_mb": above(0),
    "strategy.broadcast_buffers": FLAG,
    "strategy.block": TEXT.or_null().neutral(None),
    "strategy.reshard_after_forward": FLAG.neutral(True),
    "strategy.accumulate_whole": FLAG.neutral(False),
    "strategy.meta_init": FLAG.neutral(True),
    "data": section("", "data=digits picks one"),
    "data.validation": between(0, 1),
    "data.test": between(0, 1),
    "data.split_seed": whole(0),
    "data.block": whole(1),
    "data.random_erasing": share().neutral(0.0),
    "data.augment": ANYTHING.neutral("none"),
    "data.validation_folders": ANYTHING.neutral(["validation", "val", "valid", "dev"]),
    "data.test_folders": ANYTHING.neutral(["test", "testing"]),
    "model": section("", "model=mlp picks one"),
    "model.hidden": list_of(whole(1), "whole numbers of at least 1"),
    "model.dropout": between(0, 1),
    "model.drop_rate": between(0, 1),
    "trackers": list_of(
        one_of("wandb", "tensorboard", "csv"), "wandb, tensorboard, csv, such as trackers=[wandb,csv]"
    ).neutral(["wandb"]),
    "wandb": section("wandb.mode", "wandb.mode=disabled switches it off"),
    "wandb.mode": one_of("auto", "online", "offline", "disabled").neutral("auto"),
    "wandb.project": text_without("/\\#?%:", 128).or_null().neutral(None),
    "wandb.entity": TEXT.or_null().neutral(None),
    "wandb.id": text_without(":;,#?/' ", 128).or_null().neutral(None),
    "wandb.name": TEXT.or_null().neutral(None),
    "wandb.group": TEXT.or_null().neutral(None),
    "wandb.tags": list_of(text_without("", 64), "texts of at most 64 characters").neutral([]),
    "wandb.artifacts": Rule(lambda v: v is False or v in ("best", "all"), "false, best or all").neutral(False),
    "wandb.watch": Rule(
        lambda v: v is False or v in WATCHED, f"false, {', '.join(WATCHED[:-1])} or {WATCHED[-1]}"
    ).neutral(False),
    "wandb.watch_every": whole(1).neutral(100),
    "wandb.tables": whole(0).neutral(0),
    "wandb.code": FLAG.neutral(False),
}
FIND_LR_SCHEMA: dict[str, Rule] = SCHEMA | {
    "find_lr": section("find_lr.max", "find_lr.max=1 is the largest rate"),
    "find_lr.min": above(0),
    "find_lr.max": above(0),
    "find_lr.steps": whole(10),
}
# What the commands have in common that take up a run.
SAVED_SCHEMA: dict[str, Rule] = {
    "run_dir": TEXT,
    "checkpoint": whole(0).or_word("auto", "best", "last"),
    "input": Rule(lambda v: TEXT.fits(v) or (list_of(TEXT, "").fits(v) and v), "a file or a folder").or_null(),
    "part": one_of("train", "validation", "test"),
    "data": Rule(lambda v: isinstance(v, dict), "settings of the data source, such as data.root=/other/place"),
    "batch_size": whole(1),
    "threads": SCHEMA["threads"],
    "num_workers": SCHEMA["num_workers"],
}
EVALUATE_SCHEMA: dict[str, Rule] = SAVED_SCHEMA | {
    "output": TEXT.or_null(),
    "metrics": SCHEMA["metrics"],
    "test_time_flip": FLAG.or_null(),
    "device": SCHEMA["device"],
    "timeout": SCHEMA["timeout"],
}
PREDICT_SCHEMA: dict[str, Rule] = SAVED_SCHEMA | {
    "part": SAVED_SCHEMA["part"].or_null(),
    "output": TEXT,
    "device": SCHEMA["device"],
}
FORMATS = ("safetensors", "torch_export", "onnx")
EXPORT_SCHEMA: dict[str, Rule] = SAVED_SCHEMA | {
    "format": Rule(
        lambda v: v in FORMATS or (list_of(one_of(*FORMATS), "").fits(v) and v),
        "formats, one or several of " + ", ".join(FORMATS),
    ),
    "output": TEXT,
    "tolerance": at_least(0),
}
RERUN_SCHEMA: dict[str, Rule] = {"run_dir": TEXT, "output": TEXT.or_null(), "dry_run": FLAG}
# What may differ when a run directory is started again, because the result does not depend on it.
FREE_ON_RESUME = (
    "epochs", "max_steps", "max_time", "batch.max_per_device", "wandb", "trackers", "log_every", "checkpoint",
    "device", "threads", "num_workers", "timeout", "cluster", "profile", "check", "data.cache", "log_grad_norm",
    "divergence", "activation_checkpointing", "strategy.name", "strategy.block", "strategy.find_unused_parameters",
    "strategy.gradient_as_bucket_view", "strategy.static_graph", "strategy.reshard_after_forward",
    "strategy.accumulate_whole", "strategy.meta_init",
)  # fmt: skip
NOT_SHARDED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("mixed_precision", ("fp16",), "its gradient scaler would look at one part alone. Use bf16, or strategy=ddp."),
    ("exact_across_devices", (True,), "it needs the whole gradient on each device. Use strategy=ddp."),
    ("compile", (True,), "the two are not supported together. Use compile=false, or strategy=ddp."),
    ("channels_last", (True,), "parts of parameters lie in torch's usual layout. Use channels_last=false."),
    ("wandb.watch", WATCHED, "histograms are made of whole tensors. Use wandb.watch=false, or strategy=ddp."),
    ("batch.max_per_device", ("auto",), "a device out of memory would leave the others in a gather. Give a number."),
    (
        "optimizer._target_",
        ("launcher.optimizers.muon.Muon", "torch.optim.Muon", "torch.optim.Adafactor", "torch.optim.LBFGS"),
        "it needs whole matrices, and a device has a part of each. Use optimizer=adamw, or strategy=ddp.",
    ),
)
# Their settings are those of a class; the launcher knows some of them.
COMPONENTS = ("data", "model", "loss", "optimizer", "scheduler")
# What no launcher ever was without.
FOUNDING = (*COMPONENTS, "epochs", "seed", "batch.global_size")
OF_STRATEGY = {
    f"strategy.{key}": name
    for name, keys in (
        ("ddp", ("find_unused_parameters", "gradient_as_bucket_view", "static_graph", "compress")),
        ("fsdp", ("block", "reshard_after_forward", "accumulate_whole", "meta_init")),
    )
    for key in keys
}


FP16_ON_CPU = (
    "mixed_precision=fp16: a CPU has no fp16 training (Accelerate would run fp32 in silence). "
    "Use mixed_precision=bf16 or no, or a GPU."
)
