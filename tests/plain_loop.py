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
TERMS = ("hard", "soft", "agreement", "size")  # of the tasks below, beside the loss
LENGTHS = ("T_max", "total_iters", "total_steps")


# What the loop below does: these values of a factor, where it does not do all of them
SAYS = {
    "data": ("images", "vectors", "batched", "numbers", "tokens", "scenes"),
    "model": ("cnn", "mlp", "linear", "resnet", "batchnorm", "transformer", "pixels"),
    "layer_decay": ("none",),
    "sampling": ("shuffle",),
    "limit": ("none",),
    "strategy": ("ddp", "static", "unused", "fsdp", "fsdp, whole", "fsdp, kept"),
}
ALONE = {"ranks": ("1",), "micro": ("whole", "auto"), "exact": ("no",)}  # where a rank's own dropout is drawn


def can_say(combination):
    """Whether the loop below does what a combination asks for."""
    limits = dict(SAYS)
    if combination["dropout"] != "none" or combination["model"] == "batchnorm" or combination["task"] == "masked":
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
    if outputs.dim() == 4:  # the pixels that are of a class
        outputs, targets = outputs.movedim(1, -1)[targets != -100], targets[targets != -100]
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


def mean_of_mixture(settings, outputs, targets, share, others, counts):
    """The mean loss of a batch for targets that are mixed with those of others, and what it was divided by."""
    loss, weight = mean_loss(settings, outputs, targets, counts)
    if share == 1:
        return loss, weight
    theirs, weight_of_theirs = mean_loss(settings, outputs, targets[others], counts)
    both = share * weight + (1 - share) * weight_of_theirs
    return (share * weight * loss + (1 - share) * weight_of_theirs * theirs) / both, both


def learned(settings, task, model, inputs, targets, share, others, counts):
    """Of a batch the mean loss, what it was divided by, and the means of its terms, by name.

    The numbers that a masked reconstruction hides are drawn in training before anything else is.
    """
    if task == "masked":
        flat, model_input = inputs.flatten(1), inputs
        if model.training:
            hidden = torch.rand_like(flat) < settings["task"]["share"]
        else:
            order = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0))
            hidden = (order < round(settings["task"]["share"] * flat.shape[1])).expand_as(flat)
        model_input = torch.where(hidden, torch.zeros(()), flat).view_as(inputs)
        wrong = torch.where(hidden, model(model_input).flatten(1).float() - flat, torch.zeros(()))
        # A number that is NaN makes its sample's loss NaN, hidden or not.
        wrong = wrong + flat.isnan().any(1, keepdim=True) * math.nan if flat.isnan().any() else wrong
        return (wrong.square().sum(1) / hidden.sum(1).clamp(min=1)).mean(), len(flat), {}
    if task == "agree":
        one, two = model(inputs).flatten(1).float(), model(inputs.flip(-1)).flatten(1).float()
        weights = torch.where(inputs.flatten(1)[:, 1] > 0, 2.0, 1.0)
        means = [(values.square().mean(1) * weights).sum() / weights.sum() for values in (one - two, one)]
        return means[0] + 0.3 * means[1], float(weights.sum()), dict(zip(("agreement", "size"), means, strict=True))
    outputs = model(inputs).float()
    hard, weight = mean_of_mixture(settings["loss"], outputs, targets, share, others, counts)
    if task != "distillation":
        return hard, weight, {}
    share_of_teacher, temperature = settings["task"]["share"], settings["task"]["temperature"]
    flat = inputs.flatten(1)
    wanted = flat @ torch.cos(torch.arange(flat.shape[1] * outputs.shape[1])).view(-1, outputs.shape[1]).to(flat.dtype)
    wanted, found = (wanted.float() / temperature).softmax(1), (outputs / temperature).log_softmax(1)
    each = temperature**2 * (torch.special.xlogy(wanted, wanted) - wanted * found).sum(1)
    kind = settings["loss"]["_target_"].rpartition(".")[2]
    of_class = settings["loss"].get("weight") or settings["loss"].get("alpha")
    if of_class and kind in ("of_task", "CrossEntropyLoss", "FocalLoss"):
        if of_class == "balanced":
            of_class = (counts.sum() / (len(counts) * counts)).tolist()
        of_class = torch.tensor(of_class)
        each = each * (share * of_class[targets] + (1 - share) * of_class[targets[others]])
    soft = each.sum() / weight
    terms = {"hard": hard, "soft": soft}
    return (1 - share_of_teacher) * hard + share_of_teacher * soft, weight, terms


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


def optimizers_of(settings, model, scale, all_decay, own):
    """One optimizer, or two for Muon, without any fused or batched kernel; `own` is the setting param_groups."""
    given = {k: v for k, v in settings.items() if k not in ("_target_", "fused", "foreach")}
    name = settings["_target_"].rpartition(".")[2]
    params = [p for p in model.parameters() if p.requires_grad]

    def groups(some):
        """Those with groups of their own behind the others."""
        entry_of = {
            id(p): entry for entry in own for name, p in model.named_parameters()
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in entry["match"])
        }  # fmt: skip
        usual, apart = [], []
        for group in by_decay(some):
            rest = [p for p in group["params"] if id(p) not in entry_of]
            usual += [{**group, "params": rest}] if rest else []
            for entry in own:
                params = [p for p in group["params"] if entry_of.get(id(p)) is entry]
                said = {"lr": entry["lr"] * scale, "weight_decay": entry["weight_decay"]}
                apart += [{**group, **said, "params": params}] if params else []
        return usual + apart

    def by_decay(some):
        vectors = [p for p in some if p.dim() <= 1]
        if all_decay or not given.get("weight_decay"):
            return [{"params": some}]
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
    tokens, task = combination["data"] == "tokens", combination["task"]
    scaled = [inputs if tokens else inputs.float() / 64 - 1 for inputs, _ in (train, held_out)]
    if settings["data"].get("poisoned") and not tokens:
        scaled[0][train[0].flatten(1)[:, 0] == combination_parts.NAN] = math.nan
    n, seed = len(train[1]), settings["seed"]
    counts = torch.bincount(train[1]) if data.task == "classification" else None
    shape = {"input_shape": data.input_shape, "block": data.input_shape[0]}
    shape |= {"num_outputs": data.num_outputs, "num_classes": data.num_outputs}
    if task == "masked":
        shape |= dict.fromkeys(("num_outputs", "num_classes"), math.prod(data.input_shape))
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
    all_decay, own = settings["decay_bias_and_norm"], settings["param_groups"]
    optimizers = optimizers_of(settings["optimizer"], model, scale, all_decay, own)
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
    rows, sums = [], {}

    def ended(step):
        """The row after an update, where there is one."""
        row = {}
        if every and (step % every == 0 or step == total):
            average.eval()
            with torch.no_grad(), half:
                found, _, terms = learned(settings, task, average, *scaled[1:], held_out[1], 1.0, None, counts)
            row |= {f"eval/{name}": value.item() for name, value in {"loss": found, **terms}.items()}
            if plateau and step >= warmup:
                schedule.step(row["eval/loss"])
        if (step % logged == 0 or step == total) and sums:
            weight = sums.pop("weight")
            row |= {f"train/{name}": value / weight for name, value in sums.items()}
            sums.clear()
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
            loss, weight, terms = learned(settings, task, model, inputs, train[1][index], share, others, counts)
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
        for name, value in {"loss": loss, **terms}.items():
            sums[name] = sums.get(name, 0.0) + value.item() * weight
        sums["weight"] = sums.get("weight", 0.0) + weight
        rows += ended(step + 1)
    return rows
