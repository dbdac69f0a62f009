"""A training loop as a person writes it, on one process and over whole batches: what combinations.py compares with.

It shares no code with the launcher but the classes of the models, which are what is trained. The order of the samples
and the seeds of dropout are written down here a second time, in Python's own integers.
"""

import copy
import fnmatch
import inspect
import math

import combination_parts
import numpy
import torch
from hydra.utils import get_class, instantiate
from torch.nn import functional as F

STEPS = 8  # updates that are compared
WORD = 2**64 - 1
LENGTHS = ("T_max", "total_iters", "total_steps")


# What the loop below does: these values of a factor, where it does not do all of them
SAYS = {
    "data": ("images", "vectors", "batched", "numbers", "tokens"),
    "model": ("cnn", "mlp", "linear", "resnet", "batchnorm", "transformer"),
    "layer_decay": ("none",),
    "param_groups": ("none",),
    "sampling": ("shuffle",),
    "limit": ("none",),
    "strategy": ("ddp", "static", "unused", "fsdp", "fsdp, whole", "fsdp, kept"),
}
ALONE = {"ranks": ("1",), "micro": ("whole", "auto"), "exact": ("no",)}  # where a rank's own dropout is drawn


def can_say(combination):
    """Whether the loop below does what a combination asks for."""
    limits = dict(SAYS)
    if combination["dropout"] != "none" or combination["model"] == "batchnorm":
        limits |= ALONE
    return all(combination[factor] in values for factor, values in limits.items())


def derive(*numbers):
    """SplitMix64 over the numbers, one after the other."""
    key = 0
    for number in numbers:
        key = (key + number + 0x9E3779B97F4A7C15) & WORD
        key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & WORD
        key ^= key >> 31
    return key


def permuted(position, size, key):
    """Where a position of an epoch lands: eight rounds of a Feistel network, again until it falls inside."""
    bits = max(2, (size - 1).bit_length())
    while True:
        low, high = bits // 2, bits - bits // 2
        left, right, widths = position >> low, position & (2**low - 1), (high, low)
        for number in range(8):
            mixed = (right + derive(key, number)) & WORD
            mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & WORD
            mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & WORD
            mixed ^= mixed >> 31
            left, right, widths = right, left ^ (mixed & (2 ** widths[0] - 1)), widths[::-1]
        position = (left << widths[1]) | right
        if position < size:
            return position


def mean_loss(settings, outputs, targets, counts):
    """The mean loss of a batch, and what it was divided by."""
    kind = settings["_target_"].rpartition(".")[2]
    if outputs.dim() == 3:
        outputs, targets = outputs.flatten(0, 1), targets.flatten()
    classes = outputs.shape[1]
    weight = settings.get("weight") or settings.get("alpha")
    if weight == "balanced":
        weight = (counts.sum() / (classes * counts)).tolist()
    weight = None if weight is None else torch.tensor(weight)
    by_class = len(targets) if weight is None or targets.is_floating_point() else float(weight[targets].sum())
    if kind == "of_task":  # loss=auto
        kind = "HuberLoss" if targets.is_floating_point() else "CrossEntropyLoss"
        settings = {"delta": 1.0, **settings}
    if kind == "CrossEntropyLoss":
        return F.cross_entropy(outputs, targets, weight, label_smoothing=settings["label_smoothing"]), by_class
    if kind == "FocalLoss":
        log_p = outputs.log_softmax(1).gather(1, targets[:, None])[:, 0]
        values = -((1 - log_p.exp()) ** settings["gamma"]) * log_p
        return (values if weight is None else values * weight[targets]).sum() / by_class, by_class
    if kind == "MultiMarginLoss":
        return F.multi_margin_loss(outputs, targets, settings["p"], settings["margin"], weight), len(targets)
    if kind == "BCEWithLogitsLoss":
        positive = torch.tensor(settings["pos_weight"])
        hot = F.one_hot(targets, classes).float()
        return F.binary_cross_entropy_with_logits(outputs, hot, pos_weight=positive), len(targets)
    plain = {"MSELoss": F.mse_loss, "L1Loss": F.l1_loss, "HuberLoss": F.huber_loss}[kind]
    return plain(outputs, targets, **({"delta": settings["delta"]} if kind == "HuberLoss" else {})), len(targets)


def mixed(settings, inputs, key):
    """Inputs blended with their neighbours 2 i and 2 i + 1, or with a box of these; the share that stays, and who."""
    others = [i ^ 1 if i ^ 1 < len(inputs) else i for i in range(len(inputs))]
    alpha, cut = settings["alpha"], settings["cutmix_alpha"]
    draw = numpy.random.default_rng(key)
    whether, which = draw.random(2)
    if not (alpha or cut) or whether >= settings["prob"]:
        return inputs, 1.0, others
    if not cut or (alpha and which >= settings["switch_prob"]):
        share = draw.beta(alpha, alpha)
        return share * inputs + (1 - share) * inputs[others], share, others
    (height, width), side = inputs.shape[-2:], math.sqrt(1 - draw.beta(cut, cut))
    y, top = draw.integers(height), int(side * height / 2)
    x, left = draw.integers(width), int(side * width / 2)
    box = numpy.zeros((height, width), dtype=bool)
    box[max(y - top, 0) : y + top, max(x - left, 0) : x + left] = True
    return torch.where(torch.from_numpy(box), inputs[others], inputs), 1 - box.mean(), others


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, Symbolic discovery of optimization algorithms, algorithm 2."""

    def __init__(self, params, lr, betas, weight_decay):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            (b1, b2), lr = group["betas"], group["lr"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.mul_(1 - lr * group["weight_decay"]).sub_(lr * (b1 * m + (1 - b1) * p.grad).sign())
                m.mul_(b2).add_((1 - b2) * p.grad)


def optimizers_of(settings, model, scale, all_decay):
    """One optimizer, or two for Muon, without any fused or batched kernel."""
    given = {k: v for k, v in settings.items() if k not in ("_target_", "fused", "foreach")}
    name = settings["_target_"].rpartition(".")[2]
    params = [p for p in model.parameters() if p.requires_grad]

    def groups(some):
        vectors = [p for p in some if p.dim() <= 1]
        if all_decay or not given.get("weight_decay"):
            return some
        matrices = [p for p in some if p.dim() > 1]
        return [g for g in ({"params": matrices}, {"params": vectors, "weight_decay": 0.0}) if g["params"]]

    if name == "Muon":
        every = [p for _, p in model.named_parameters(remove_duplicate=False) if p.dim() == 2]
        kept = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)} | {id(every[-1])}
        hidden = [p for p in params if p.dim() == 2 and id(p) not in kept]
        rest = [p for p in params if p.dim() != 2 or id(p) in kept]
        of_muon = {k: given[k] for k in ("momentum", "nesterov", "ns_steps", "adjust_lr_fn", "weight_decay")}
        of_adamw = {"betas": given["betas"], "eps": given["eps"], "weight_decay": given["weight_decay"]}
        return [
            torch.optim.Muon(groups(hidden), lr=given["lr"] * scale, **of_muon),
            *(
                [torch.optim.AdamW(groups(rest), lr=given["adamw_lr"] * scale, foreach=False, **of_adamw)]
                if rest
                else []
            ),
        ]
    given["lr"] *= scale
    kind = Lion if name == "Lion" else getattr(torch.optim, name)
    return [kind(groups(params), **given, **({} if name == "Lion" else {"foreach": False}))]


def losses(settings, combination):
    """Rows {step, train/loss} of the first updates, as the record has them."""
    data = combination_parts.load(**{k: v for k, v in settings["data"].items() if k in ("kind", "source", "poisoned")})
    train, held_out = (
        (part.inputs, part.targets) if hasattr(part, "inputs") else (part.dataset.inputs, part.dataset.targets)
        for part in (data.train, data.validation)
    )
    tokens = combination["data"] == "tokens"
    scaled = [inputs if tokens else inputs.float() / 64 - 1 for inputs, _ in (train, held_out)]
    if settings["data"].get("poisoned") and not tokens:
        scaled[0][train[0].flatten(1)[:, 0] == combination_parts.NAN] = math.nan
    n, seed = len(train[1]), settings["seed"]
    counts = None if train[1].is_floating_point() or tokens else torch.bincount(train[1])
    shape = {"input_shape": data.input_shape, "block": data.input_shape[0]}
    shape |= {"num_outputs": data.num_outputs, "num_classes": data.num_outputs}
    given = dict(settings["model"])
    known = inspect.signature(get_class(given["_target_"]).__init__).parameters
    torch.manual_seed(seed)
    model = instantiate(given, **{k: v for k, v in shape.items() if k in known}, _convert_="all")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(fnmatch.fnmatchcase(name, p) for p in settings["freeze"]))
    average = copy.deepcopy(model)
    size = min(settings["batch"]["global_size"], n)
    rule, base = settings["batch"]["lr_scaling"], settings["batch"]["base_size"]
    scale = {"none": 1.0, "linear": size / base, "sqrt": math.sqrt(size / base)}[rule]
    optimizers = optimizers_of(settings["optimizer"], model, scale, settings["decay_bias_and_norm"])
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]

    # The schedule: torch's own, over the groups of all optimizers, behind a linear warmup
    per_epoch = math.ceil(n / size)
    total = settings["epochs"] * per_epoch
    plan = {k: v for k, v in settings["scheduler"].items() if k not in ("_target_", "interval", "warmup", "metric")}
    warmup = settings["scheduler"]["warmup"]
    warmup = round(0.5 * per_epoch) if warmup == "0.5epochs" else round(warmup * (total if warmup < 1 else 1))
    period = 1 if settings["scheduler"]["interval"] == "step" else per_epoch
    kind = get_class(settings["scheduler"]["_target_"])
    for key in LENGTHS:
        if key in plan and plan[key] is None:
            plan[key] = math.ceil((total - warmup) / period)
    if "max_lr" in plan:
        plan["max_lr"] = [group["lr"] for group in groups]
    together = optimizers[0]
    if len(optimizers) > 1:  # a scheduler acts on one optimizer: one that only holds the groups
        together = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
        together.param_groups, together.defaults = groups, optimizers[0].defaults
    schedule = kind(together, **plan)
    peaks = [group["lr"] for group in groups]
    plateau = kind is torch.optim.lr_scheduler.ReduceLROnPlateau

    every = settings["eval_every"]
    every = per_epoch if every == "epoch" else every
    logged = per_epoch if settings["log_every"] == "epoch" else settings["log_every"]
    half = torch.autocast("cpu", torch.bfloat16, enabled=settings["mixed_precision"] == "bf16")
    clip, cut = settings["clip_grad_norm"], settings["clip_grad_value"]
    rows, sums = [], [0.0, 0.0]

    def ended(step):
        """The row after an update, where there is one."""
        row = {}
        if every and (step % every == 0 or step == total):
            average.eval()
            with torch.no_grad(), half:
                outputs = average(scaled[1])
            row["eval/loss"] = mean_loss(settings["loss"], outputs.float(), held_out[1], counts)[0].item()
            if plateau and step >= warmup:
                schedule.step(row["eval/loss"])
        if (step % logged == 0 or step == total) and sums[1]:
            row["train/loss"] = sums[0] / sums[1]
            sums[:] = [0.0, 0.0]
        return [{"step": step, **row}] if row else []

    for step in range(min(total, STEPS)):
        epoch, position = divmod(step, per_epoch)
        key = derive(seed, 1, epoch)
        index = [permuted(i, n, key) for i in range(position * size, min((position + 1) * size, n))]
        if step <= warmup and warmup:
            for group, peak in zip(groups, peaks, strict=True):
                group["lr"] = peak * (step + 1) / (warmup + 1)
        if scaled[0][index].isnan().any():  # left out, after a return to a checkpoint
            if step + 1 > warmup and not plateau and (step + 1 - warmup) % period == 0:
                schedule.step()
            rows += ended(step + 1)
            continue
        model.train()
        torch.manual_seed(derive(seed, 3, step, 0) >> 1)
        inputs, share, others = mixed(settings["mixup"], scaled[0][index], derive(seed, 4, step))
        with half:
            outputs = model(inputs)
        loss, weight = mean_loss(settings["loss"], outputs.float(), train[1][index], counts)
        if share < 1:
            theirs, weight_of_theirs = mean_loss(settings["loss"], outputs.float(), train[1][index][others], counts)
            both = share * weight + (1 - share) * weight_of_theirs
            loss = (share * weight * loss + (1 - share) * weight_of_theirs * theirs) / both
            weight = both
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(trained, clip, foreach=False)
        if cut is not None:
            torch.nn.utils.clip_grad_value_(trained, cut, foreach=False)
        for optimizer in optimizers:
            optimizer.step()
        if step + 1 > warmup and not plateau and (step + 1 - warmup) % period == 0:
            schedule.step()
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
                mine.lerp_(theirs, 1 - settings["ema_decay"]) if settings["ema_decay"] else mine.copy_(theirs)
            for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
                mine.copy_(theirs)
        sums[0] += loss.item() * weight
        sums[1] += weight
        rows += ended(step + 1)
    return rows
