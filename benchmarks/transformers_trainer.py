"""A BERT by the launcher and by the Hugging Face Trainer on the same padded batches: losses, and steps per second.

    python benchmarks/transformers_trainer.py --size base --ranks 1 2 3
    python benchmarks/transformers_trainer.py --size tiny --ranks 2 --accumulation 2 --lora

Weights are random, of the shape of bert-base-uncased or a tiny one, with no dropout. Both begin with the same directory
and learn the words of data=brackets by AdamW, batch by batch in the same order. A Trainer has no exact mean over ranks
of unequal shares, so the global batch is one that all numbers of ranks divide.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SIZES = {
    "base": {},
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
RATE, WARM = 1e-3, 3  # learning rate; steps before the clock starts
LORA = {"name": "lora", "rank": 8, "alpha": 16, "dropout": 0.0, "target_modules": "all-linear", "modules_to_save": None}
Options = argparse.Namespace


def words_of(options: Options, ranks: int, place: Path) -> list[str]:
    """The launcher's settings."""
    words = [
        "data=brackets", f"data.samples={options.samples}", "model=transformers", f"model.name={place / 'bert'}",
        "optimizer=adamw", f"optimizer.lr={RATE}", "optimizer.weight_decay=0", "scheduler=constant",
        f"batch.global_size={options.batch}", f"max_steps={options.steps}", "epochs=999", "log_every=1",
        "eval_every=null", "checkpoint.every=null", "wandb.mode=disabled", f"threads={options.threads}",
        f"mixed_precision={options.precision}", "num_workers=0", f"device={options.device}",
        f"batch.max_per_device={options.batch // ranks // options.accumulation}",
    ]  # fmt: skip
    return [*words, *(["adapter=lora"] if options.lora else [])]


def write_model(options: Options, place: Path) -> None:
    """The directory that both begin with."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    known = BertConfig(**SIZES[options.size], **STILL, num_labels=2)
    BertForSequenceClassification(known).save_pretrained(place / "bert")


def together(rows: list[Any]) -> dict[str, Any]:
    """Samples as a batch of the Trainer, padded to the longest."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    tokens = [torch.as_tensor(inputs["input_ids"]).long() for inputs, _ in rows]
    mask = pad_sequence([torch.ones_like(one) for one in tokens], batch_first=True)
    labels = torch.tensor([int(target) for _, target in rows])
    return {"input_ids": pad_sequence(tokens, batch_first=True), "attention_mask": mask, "labels": labels}


def arguments_of(options: Options, ranks: int, place: Path) -> Any:
    """What the Trainer is told."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(place / "trainer"), use_cpu=options.device == "cpu", max_steps=options.steps,
        per_device_train_batch_size=options.batch // ranks // options.accumulation,
        gradient_accumulation_steps=options.accumulation, max_grad_norm=0, bf16=options.precision == "bf16",
        logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        ddp_backend="gloo" if ranks > 1 and options.device == "cpu" else None,
    )  # fmt: skip


def by_trainer(options: Options, ranks: int, place: Path) -> None:
    """One rank of the Trainer: losses and steps per second into trainer.json."""
    import numpy as np
    import torch
    from torch.utils.data import Dataset, SequentialSampler
    from transformers import Trainer, TrainerCallback

    from launcher.batching.generators import seed_generators
    from launcher.batching.sampling import EpochPermutation
    from launcher.data.brackets import load
    from launcher.models.adapters import adapt
    from launcher.models.build import build_model

    torch.set_num_threads(options.threads)
    seed_generators(0)
    data = load(options.samples, kinds=2, longest=40, test=0.2, validation=0.1, split_seed=0)
    described = {
        "_target_": "launcher.models.transformers.create", "auto": "sequence_classification", "type": None,
        "name": str(place / "bert"), "weights": True, "config": {}, "download": False, "trust_remote_code": False,
    }  # fmt: skip
    model = build_model(described, data.facts(), begins=True)
    adapt(model, LORA if options.lora else None, data.facts())

    class InOrder(Dataset):
        """The samples of each step, one after the other, as the launcher's order has them."""

        def __init__(self) -> None:
            train, steps = data.train.dataset, len(data.train) // options.batch
            assert options.steps <= steps, f"at most {steps} steps are an epoch of whole batches"
            places = np.arange(options.steps * options.batch)
            self.rows = [train[i] for i in EpochPermutation(len(data.train), 0).samples_at(0, places).tolist()]

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> Any:
            return self.rows[index]

    class Clock(TrainerCallback):
        begun, losses = 0.0, []

        def on_step_end(self, arguments: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == WARM:
                self.begun = time.perf_counter()

        def on_log(self, arguments: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
            if "loss" in logs:
                self.losses.append(logs["loss"])

    class Ordered(Trainer):
        def _get_train_sampler(self, *others: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    clock = Clock()
    arguments = arguments_of(options, ranks, place)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0)
    still = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = Ordered(
        model, arguments, data_collator=together, train_dataset=InOrder(), callbacks=[clock],
        optimizers=(optimizer, still),
    )  # fmt: skip
    # BERT's loss leaves the number of samples in all micro-batches aside, which its signature says that it takes: the
    # Trainer would log, and differentiate, the mean times ranks and accumulation steps.
    trainer.model_accepts_loss_kwargs = False
    trainer.train()
    seconds = time.perf_counter() - clock.begun
    if int(os.environ.get("RANK", "0")) == 0:
        found = {"losses": clock.losses, "steps_per_second": (options.steps - WARM) / seconds}
        (place / "trainer.json").write_text(json.dumps(found))


def compare(losses: list[float], others: list[float]) -> float:
    """The largest difference of two sequences of losses of one length."""
    assert len(losses) == len(others), (len(losses), len(others))
    return max(abs(one - other) for one, other in zip(losses, others, strict=True))


def of_launcher(run: Path) -> dict[str, Any]:
    """Losses and steps per second of a run directory."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = [json.loads(line)["time"] for line in (run / "timings.jsonl").read_text().splitlines()]
    return {
        "losses": [row["train/loss"] for row in rows if "train/loss" in row],
        "steps_per_second": (len(times) - WARM) / (times[-1] - times[WARM - 1]),
    }


def measure(options: Options, ranks: int, place: Path, given: list[str]) -> tuple[float, float, float]:
    """The largest difference of a loss, and steps per second of the launcher and of the Trainer."""
    many = [sys.executable]
    if ranks > 1:
        many += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    run = place / f"run{ranks}"
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    ours = [*many, str(ROOT / "launcher/train.py"), *words_of(options, ranks, place), f"hydra.run.dir={run}"]
    theirs = [*many, __file__, *given, "--place", str(place), "--world", str(ranks)]
    for command in (ours, theirs):
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    launcher, trainer = of_launcher(run), json.loads((place / "trainer.json").read_text())
    difference = compare(launcher["losses"], trainer["losses"])
    return difference, launcher["steps_per_second"], trainer["steps_per_second"]


def parse(argv: list[str]) -> Options:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1])
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "auto"), default="cpu")
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)  # of a rank that this script starts
    parser.add_argument("--world", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main() -> None:
    """Measure each number of ranks, or be one of them."""
    options = parse(sys.argv[1:])
    if options.world:
        by_trainer(options, options.world, options.place)
        return
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        write_model(options, place)
        for ranks in options.ranks:
            difference, ours, theirs = measure(options, ranks, place, sys.argv[1:])
            print(
                f"{ranks} ranks: losses differ by at most {difference:.1e}; "
                f"{ours:.3g} and {theirs:.3g} steps/s, ratio {ours / theirs:.2f}"
            )


if __name__ == "__main__":
    main()
