"""The runs of golden.py. Their command lines stand here as they are typed, whatever other tests run."""

from dataclasses import dataclass
from pathlib import Path

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
COMMON = ("seed=3", "threads=1", "device=cpu", "trackers=[]", "log_every=1", "epochs=3")
BOOK = "the cat sat on a mat and then it saw another naïve dog that ran under two old green trees"

# A model of a person's own, which one sample of the training part gets a NaN out of: the one with the largest value.
OWN = """
import torch
from torch import nn


class Poisoned(nn.Module):
    def __init__(self, input_shape, num_outputs, limit):
        super().__init__()
        self.layer, self.limit = nn.Linear(input_shape[0], num_outputs), limit

    def forward(self, inputs):
        scores = self.layer(inputs)
        return torch.where((inputs[:, :1] > self.limit) & self.training, torch.nan, scores)
"""


@dataclass(frozen=True)
class Step:
    """One start of a program in the directory of a run.

    Attributes:
        words: Its command line, without what all have in common.
        ranks: Processes.
        program: train, or a console command.
        stopped: Whether to stop it by SIGTERM at its first row of the record.
    """

    words: str
    ranks: int = 1
    program: str = "train"
    stopped: bool = False


@dataclass(frozen=True)
class Run:
    """What is kept and compared under a name.

    Attributes:
        name: In golden.json and on the command line.
        steps: One after the other, in one directory.
        needs: Packages, or a data set, without which it is skipped.
    """

    name: str
    steps: tuple[Step, ...]
    needs: str = ""


def one(name: str, ranks: int, words: str, needs: str = "") -> Run:
    """A run of one step, in the run directory `run`."""
    return Run(name, (Step(f"hydra.run.dir=run {words}", ranks),), needs)


SOME = "max_steps=7 eval_every=3 checkpoint.every=3"
TABLE = "data=csv data.path=../inputs/table.csv data.target=price"
TEXT = "data=text data.path=../inputs/book.txt data.block=16 data.cache=cache data.test=0.1 data.validation=0.1"
FOLDER = "data=image_folder data.root=../inputs/images data.image_size=10 batch.global_size=20"
TRANSFORMER = f"{TEXT} model=transformer model.width=16 model.layers=2 model.heads=2"
CNN = "model=cnn model.channels=[8,16] model.dense=8"
BOTH = "mixup.alpha=0.4 mixup.cutmix_alpha=1.0 mixup.prob=0.7 mixup.switch_prob=0.4"
STOPPING = "early_stopping.metric=eval/loss early_stopping.patience=2 early_stopping.min_delta=0.05"
GROWN = f"data=iris batch.global_size=32 ema_decay=0.8 {BOTH.replace('1.0', '0')}"

RUNS = [
    # Longest first, so that none is left alone at the end
    one("workers", 2, f"{FOLDER} {CNN} data.augment=randaugment data.random_erasing=0.5 num_workers=2 "
        "sampling=balanced model.dropout=0.2 loss=focal loss.alpha=balanced epochs=2", "torchvision PIL"),
    one("torchvision", 1, f"{FOLDER} model=torchvision model.name=resnet18 optimizer.lr=0.001 max_steps=3 "
        "checkpoint.best=null eval_every=null freeze=['layer1.*']", "torchvision PIL"),
    Run("sweep", (Step("-m hydra.sweep.dir=sweep data=iris optimizer=sgd,adam optimizer.lr=0.1,0.01 epochs=2"),)),
    one("experiment fashion_mnist", 2, "experiment=fashion_mnist max_steps=4 eval_every=null checkpoint.best=null "
        "data.validation=0.002 model.channels=[8,16] model.dense=8", "fashion_mnist"),
    one("experiment fashion_mnist_resnet", 1, "experiment=fashion_mnist_resnet max_steps=3 data.validation=0.002 "
        "model.depth=8 model.width=4", "fashion_mnist"),
    one("huggingface", 2, f"data=huggingface data.path=../inputs/table.csv data.input=width data.target=price "
        f"loss=l1 {SOME}", "datasets"),
    one("experiment diabetes", 1, "experiment=diabetes"),
    one("experiment imbalanced", 3, f"experiment=imbalanced {SOME}"),
    one("experiment text", 2, f"experiment=text {TEXT} model.width=16 model.layers=2 model.heads=2 {SOME}"),
    one("shards", 3, "data=shards data.path=../inputs/book.txt data.dtype=uint8 data.vocabulary=256 data.block=16 "
        "data.test=0.1 data.validation=0.1 sampling=blocked model=transformer model.width=16 model.layers=2 "
        f"model.heads=2 {SOME}"),
    # Data
    one("wine", 1, "data=wine model=linear scheduler=constant loss.weight=balanced loss.label_smoothing=0.1"),
    one("csv", 3, f"{TABLE} loss=mse model.hidden=[12,12] optimizer=adagrad optimizer.initial_accumulator_value=0.1 "
        "scheduler=step scheduler.interval=epoch scheduler.step_size=1 batch.global_size=10 batch.lr_scaling=linear"),
    # Settings in combination
    one("channels_last mixup ema", 2, f"{CNN} channels_last=true {BOTH} ema_decay=0.8 mixed_precision=bf16 "
        f"scheduler.warmup=2 {SOME}"),
    one("balanced focal clip micro", 3, f"sampling=balanced loss=focal loss.alpha=balanced loss.gamma=0.5 {CNN} "
        f"optimizer.nesterov=true optimizer.weight_decay=0.1 clip_grad_norm=0.5 batch.max_per_device=5 {SOME}"),
    one("muon recompute", 1, "optimizer=muon optimizer.adamw_lr=0.002 model.hidden=[24,24] model.dropout=0.2 "
        f"activation_checkpointing=['*'] batch=small scheduler=one_cycle {SOME}"),
    one("muon freeze", 2, "optimizer=muon model.hidden=[24,24] freeze=['*bias'] clip_grad_value=0.02 "
        f"batch.max_per_device=3 ema_decay=0.8 {SOME}"),
    one("vit layer_decay lion", 2, "model=timm model.name=test_vit +model.options={img_size:8,patch_size:4,depth:2} "
        f"model.drop_rate=0.2 layer_decay=0.7 optimizer=lion decay_bias_and_norm=false channels_last=true {SOME}",
        "timm"),
    one("muon param_groups", 2, "model.hidden=[24,24] optimizer=muon layer_decay=0.7 "
        f"param_groups=[{{match:'*.1.*',lr:0.01}},{{match:'*bias',weight_decay:0.1}}] {SOME}"),
    one("resnet cutmix one_cycle", 3, "model=resnet model.depth=8 model.width=8 channels_last=true "
        "mixup.cutmix_alpha=1.0 freeze=['*bias'] scheduler=one_cycle scheduler.cycle_momentum=true "
        "log_grad_norm=true max_steps=5 eval_every=3"),
    one("transformer fsdp recompute", 2, f"{TRANSFORMER} strategy=fsdp optimizer=adamw activation_checkpointing=['*'] "
        f"ema_decay=0.8 model.dropout=0.2 clip_grad_norm=0.5 {SOME}"),
    one("fsdp bf16 whole", 3, "strategy=fsdp strategy.accumulate_whole=true strategy.meta_init=false "
        "mixed_precision=bf16 model.hidden=[24,24] batch.max_per_device=7 optimizer=adam scheduler=plateau "
        f"scheduler.patience=0 scheduler.factor=0.5 scheduler.threshold=0.2 {SOME}"),
    one("fsdp kept layer_decay", 2, "strategy=fsdp strategy.reshard_after_forward=false layer_decay=0.7 "
        f"model.hidden=[24,24] freeze=['*bias'] optimizer=adamw sampling=balanced {SOME}"),
    *[one(f"exact on {ranks}", ranks, f"exact_across_devices=true {CNN} channels_last=true {BOTH} ema_decay=0.8 "
          f"batch.max_per_device=3 model.dropout=0.2 clip_grad_norm=0.5 mixed_precision=bf16 {SOME}")
      for ranks in (1, 2)],
    one("compressed amsgrad", 2, "strategy.compress=bf16 mixed_precision=bf16 optimizer=adam optimizer.amsgrad=true "
        f"data.shift=0 model.activation=gelu {SOME}"),
    one("static bce rmsprop", 2, "strategy.static_graph=true loss=binary_cross_entropy optimizer=rmsprop "
        f"optimizer.lr=0.0001 optimizer.momentum=0.9 optimizer.centered=true scheduler=linear "
        f"scheduler.interval=epoch scheduler.warmup=0.2epochs {SOME}"),
    one("unused multi_margin", 3, "strategy.find_unused_parameters=true strategy.gradient_as_bucket_view=false "
        f"loss=multi_margin loss.p=2 batch.global_size=23 batch.lr_scaling=sqrt data.imbalance=10 {SOME}"),
    one("rollback", 2, "data=wine +model.limit=2.1 model._target_=golden_own.Poisoned divergence.action=rollback "
        "batch.global_size=16 checkpoint.every=2 divergence.max_rollbacks=9"),
    one("metrics flip", 2, f"metrics=[AUROC] test_time_flip=true data.flip=true {CNN} {SOME} eval_every=epoch",
        "torchmetrics"),
    # Ends and beginnings
    one("early stopping", 2, f"data=iris {STOPPING} epochs=60 scheduler=constant batch.global_size=23 optimizer=adam"),
    Run("longer", tuple(Step(f"hydra.run.dir=run {CNN} {BOTH} optimizer=adamw sampling=balanced eval_every=3 "
                             f"scheduler=step scheduler.interval=step scheduler.step_size=2 "
                             f"checkpoint.every=3 max_steps={steps}", 2) for steps in (5, 9))),
    Run("resumed elsewhere", tuple(Step(f"hydra.run.dir=run exact_across_devices=true {CNN} scheduler=constant {SOME} "
                                        f"max_steps={steps}",
                                        ranks) for steps, ranks in ((4, 2), (8, 1)))),
    *[Run(f"stopped on {ranks}", tuple(Step(f"hydra.run.dir=run {GROWN} epochs=250 checkpoint.every=50 log_every=5 "
                                            f"eval_every=25", ranks, stopped=stopped) for stopped in (True, False)))
      for ranks in (1, 3)],
    Run("fine-tuned", (Step("hydra.run.dir=first data=wine epochs=2 optimizer=adam", 2),
                       Step("hydra.run.dir=run data=iris init_from=first layer_decay=0.7 epochs=2", 1))),
    Run("evaluated", (Step("hydra.run.dir=run data=wine ema_decay=0.8", 1),
                      Step("run_dir=run part=validation device=cpu threads=1", 2, "evaluate"),
                      Step("run_dir=run part=train checkpoint=last device=cpu threads=1", 1, "evaluate"),
                      Step("run_dir=run part=test output=run/test.csv device=cpu threads=1", 1, "predict"))),
    Run("predicted", (Step(f"hydra.run.dir=run {TABLE} loss=huber optimizer=adamw", 1),
                      Step("run_dir=run input=../inputs/table.csv output=run/table.csv device=cpu threads=1", 1,
                           "predict"))),
]  # fmt: skip
