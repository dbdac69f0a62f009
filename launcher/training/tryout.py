"""A few samples tried through model, loss, metrics and tables before a run: what does not fit is a sentence then.

On the CPU, before a device or a directory is touched. It leaves no trace on generators, buffers or files that a dataset
opens when it is first read.
"""

import copy
import pickle
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from launcher.batching.generators import generators_kept
from launcher.batching.plan import plan_batch
from launcher.batching.splits import INDICES, DatasetSplit, Split, as_numbers, first_infinite, suit
from launcher.batching.stream import Stream, in_order
from launcher.batching.workers import as_a_worker_gets_it
from launcher.core.compat import tree_leaves, tree_map, tree_map_only
from launcher.core.errors import BrokenFile, ConfigError
from launcher.data.source import Data
from launcher.losses.per_sample import CLASSIFYING, LOGISTIC, REGRESSING, PerSample
from launcher.tasks.outputs import Outputs
from launcher.tasks.supervised import tensor_of
from launcher.training.modes import modes_kept

FEW = 3  # samples of a training batch that is tried
LARGE = 20_000_000  # parameters; of a larger model only the shapes of the outputs are found, which takes no time
WORK = 200_000_000_000  # parameters times numbers of a batch: up to this a large model is run, in seconds at most
CPU = torch.device("cpu")
Run = Callable[[Any], Any]  # from inputs to outputs; None where the model cannot be run here
OF_A_DEVICE = re.compile("cuda|cpu|gpu|triton|device|backend", re.IGNORECASE)


@dataclass(frozen=True)
class How:
    """What a run does with its samples."""

    workers: int | str  # processes per device that load them
    cut: str | None = None  # the setting by which a loss sees a part of a global batch at once; None: it sees all
    shapes: bool = False  # some rank has no weights: then none tries more than shapes, so that all say the same
    leaves_out: bool = False  # batches with NaN are left out of the training


def try_out(
    model: nn.Module, loss: PerSample, data: Data, meaning: Outputs, kind: Callable[..., Stream], how: How
) -> Outputs:
    """Try some training samples, and one of each split that is measured.

    What looks strange is added to the data's notes. The meaning is known as far as data and loss tell, and is given
    back as the outputs are.

    Raises:
        ConfigError: Something does not fit.
    """
    run = _runner(model, how.shapes)
    splits = {name: copy_for_worker(split, how.workers, name) for name, split in data.splits().items()}
    few = min(FEW, len(splits["train"]))
    with modes_kept(model), generators_kept():
        stream = kind(splits["train"], plan_batch(len(splits["train"]), few, 1, None), 0, 0, CPU, 0)
        with explained("data: the first samples of the train split cannot be read"):
            micro = next(stream.batches(0, 1)).micros[0]
        targets = getattr(micro.targets, "targets", micro.targets)  # of mixed samples
        _check_sample(data, "train", micro.inputs, targets, how.leaves_out)
        outputs = _run_as_it_is(run, micro.inputs, *splits.values(), *data.splits().values())
        if outputs is not None:
            meaning = meaning.fitted(outputs, few)
            if outputs.is_meta:
                outputs = torch.randn(outputs.shape)
            else:
                _try_loss(model, loss, outputs, micro.targets, meaning)
            if how.cut is not None and depends_on_batch(loss, outputs.detach(), targets):
                raise ConfigError(
                    f"loss: what {type(loss.loss).__name__} says of a sample depends on which others it sees, and "
                    f"{how.cut} cuts the global batch: the result would depend on that. Return one value per sample, "
                    "of that sample alone, or their plain mean; or let one device see all of the batch at once; or "
                    "say `may_be_cut = True` in the class."
                )
        model.eval()
        for name in ("validation", "test"):
            meaning = _try_measuring(run, loss, data, name, splits[name], meaning)
    asked = meaning.task in ("classification", "multilabel") and meaning.given != "probabilities"
    if asked and isinstance(list(model.modules())[-1], nn.Sigmoid):
        data.notes.append("the model ends in a sigmoid, and its outputs are taken for logits, of which 0 is even odds")
    return meaning


def read_outputs(model: nn.Module, split: Split, meaning: Outputs) -> Outputs:
    """The meaning of the outputs of a trained model, on the CPU, by those for the first sample of any split.

    Raises:
        ConfigError: They are not what the task needs.
    """
    suit(model, split)
    with modes_kept(model), generators_kept(), torch.no_grad():
        inputs, targets = next(in_order(copy_for_worker(split), 0, len(split), 1, CPU, 0))
        outputs = _run_as_it_is(_runner(model.eval()), inputs, split)
    meaning = _near(meaning, targets)
    return meaning if outputs is None else meaning.fitted(outputs, 1)


@torch.no_grad()
def depends_on_batch(loss: PerSample, outputs: Tensor, targets: Tensor) -> bool:
    """Whether a loss is neither a value of each sample alone nor the plain mean of such values.

    Tried on each sample twice, slightly changed, so that some share a target; and on random outputs, since those of a
    model at its start may all be the same. A class says by `may_be_cut` that it does not matter.
    """
    if isinstance(loss.loss, (*CLASSIFYING, *REGRESSING, *LOGISTIC)) or getattr(loss.loss, "may_be_cut", False):
        return False
    loss, generator = copy.deepcopy(loss), torch.Generator().manual_seed(0)
    noise = torch.rand(outputs.shape, generator=generator, dtype=torch.float32).to(outputs.dtype)
    twice = torch.cat([targets, targets])
    for given in (torch.cat([outputs, outputs * (1 - 0.1 * noise)]), torch.cat([6 * noise - 3, 2 - 4 * noise])):
        try:
            whole, weights = loss(given, twice)
        except Exception:
            continue  # it takes no such outputs
        if not whole.isfinite().all():
            continue
        try:
            each = [loss(given[i : i + 1], twice[i : i + 1]) for i in range(len(given))]
        except Exception:
            return True  # it needs several samples
        alone = torch.cat([values for values, _ in each])
        mean = bool((whole == whole[0]).all()) and torch.allclose(whole.mean(), alone.mean(), rtol=1e-4, atol=1e-6)
        if not mean and not torch.allclose(whole, alone, rtol=1e-4, atol=1e-6):
            return True
        apart = [weight for _, weight in each if weight is not None]
        if weights is not None and not torch.allclose(weights.float(), torch.cat(apart).float(), rtol=1e-4, atol=1e-6):
            return True
    return False


def _try_loss(model: nn.Module, loss: PerSample, outputs: Tensor, targets: Any, meaning: Outputs) -> None:
    name, samples = type(loss.loss).__name__, len(outputs)
    if meaning.one_logit and isinstance(loss.loss, CLASSIFYING):  # which would take it for the score of a first class
        raise ConfigError(
            f"loss: {name} takes a score for each of two classes, and the model gives {list(outputs.shape)} for "
            f"{samples} samples, one logit. Use loss=binary_cross_entropy, or a model with two outputs."
        )
    shapes = f"outputs {shapes_of(outputs)} and targets {shapes_of(getattr(targets, 'targets', targets))}"
    with explained(f"loss: {name} fails on {shapes}"):
        values, _ = copy.deepcopy(loss)(outputs, targets)
    if values.shape != (samples,):
        raise ConfigError(
            f"loss: {name} gives {list(values.shape)} for {samples} samples; it must be one value per sample, "
            f"[{samples}], or their mean."
        )
    if not values.requires_grad and any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"loss: {name} has no gradient; something in it, or in the model, is detached from outputs.")


@torch.no_grad()
def _try_measuring(run: Run, loss: PerSample, data: Data, name: str, split: Split, meaning: Outputs) -> Outputs:
    with explained(f"data: the first samples of the {name} split cannot be read"):
        inputs, targets = next(in_order(split, 0, len(split), 1, CPU, 0))
    _check_sample(data, name, inputs, targets)
    meaning = _near(meaning, targets)
    outputs = run(inputs)
    if outputs is None:
        return meaning
    meaning = meaning.fitted(outputs, 1)
    if not outputs.is_meta:
        _measure(copy.deepcopy(loss), name, outputs.float(), targets, meaning)
    return meaning


def _near(meaning: Outputs, targets: Tensor) -> Outputs:
    """Where nobody has told the targets of a regression, the first of them is near enough to all."""
    if meaning.task != "regression" or meaning.near is not None:
        return meaning
    return replace(meaning, near=targets.double().reshape(-1))


def _measure(loss: PerSample, name: str, outputs: Tensor, targets: Tensor, meaning: Outputs) -> None:
    shapes = f"outputs {shapes_of(outputs)} and targets {shapes_of(targets)}"
    with explained(f"loss, metrics: one {name} sample with {shapes} cannot be measured"):
        loss(outputs, targets)
        scores, sums = meaning.scores(outputs), meaning.sums(CPU)
        sums.update(scores, targets)
        sums.figures()
        if not meaning.dense:
            meaning.columns(scores, targets, True)


def _run_as_it_is(run: Run, inputs: Any, *splits: Split) -> Any:
    """What `run` gives; whole numbers that the model does not take, but as floats, are from now on given so."""
    outputs = failed = None
    try:
        outputs = run(inputs)
    except ConfigError as error:
        failed = error
    if outputs is None and any(isinstance(leaf, Tensor) and leaf.dtype in INDICES for leaf in tree_leaves(inputs)):
        with suppress(ConfigError):
            outputs = run(as_numbers(inputs, replace(splits[0], indices=False)))
        for split in splits:
            split.indices = outputs is None
    if outputs is None and failed is not None:
        raise failed
    return outputs


def is_large(model: nn.Module) -> bool:
    """Whether a model is to be tried by its shapes alone: it is large, or has no weights here."""
    return sum(one.numel() for one in model.parameters()) > LARGE or any(one.is_meta for one in model.parameters())


def _runner(model: nn.Module, shapes: bool = False) -> Run:
    """What runs a model here: in full, or of a large one, or with `shapes`, for the shapes of its outputs alone."""
    without = any(one.is_meta for one in model.parameters())
    if shapes or without or not is_large(model):
        return partial(_run, model, shapes or without)
    return partial(_run_large, model)


def _run_large(model: nn.Module, inputs: Any) -> Any:
    """The shapes of the outputs of a large model, or None.

    Where a model asks for numbers on its way, as those of transformers do of a mask, shapes are not enough: then it is
    run in full, if that takes no more than seconds.
    """
    outputs = _run(model, True, inputs)
    numbers = max((leaf.numel() for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)), default=0)
    if outputs is not None or numbers * sum(one.numel() for one in model.parameters()) > WORK:
        return outputs
    with torch.no_grad():
        return tree_map_only(Tensor, lambda tensor: tensor.to("meta"), _run(model, False, inputs))


def _run(model: nn.Module, shapes: bool, inputs: Any) -> Any:
    """The outputs of a model, with copies of its buffers, or `shapes` alone; None where it cannot be run here."""
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    state = {name: tensor.clone() for name, tensor in buffers.items()}
    if shapes:
        state = {name: tensor.detach().to("meta") for name, tensor in (parameters | buffers).items()}
        inputs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), inputs)
    try:
        if not any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
            return tensor_of(torch.func.functional_call(model, state, (inputs,)))
        try:  # which takes no other tensors than its own
            return None if shapes else tensor_of(model(inputs))
        finally:
            with torch.no_grad():
                for name, before in state.items() if not shapes else ():
                    buffers[name].copy_(before)
    except ConfigError:
        raise
    except Exception as error:
        of_a_device = torch.cuda.is_available() and OF_A_DEVICE.search(str(error))  # that this try does not use
        if shapes or of_a_device or isinstance(error, torch.OutOfMemoryError):
            return None  # not every model works without memory, nor on a CPU
        raise ConfigError(
            f"model: {type(model).__name__} fails on inputs {shapes_of(inputs)}: {_words(error)}"
        ) from error


def _check_sample(data: Data, name: str, inputs: Any, targets: Any, leaves_out: bool = False) -> None:
    """Look at a batch that was read: numbers, and targets that are one tensor of what the task needs."""
    if not leaves_out and first_infinite(inputs) is not None:
        raise ConfigError(f"data={data.name}: a sample of its {name} split holds NaN or infinity; mend it, or drop it.")
    if not isinstance(targets, Tensor):
        raise ConfigError(
            f"data={data.name}: a target of its {name} split is a {type(targets).__name__}, {shapes_of(targets)}; it "
            "must be one number or tensor."
        )
    data.check_targets(name, targets, len(targets))
    if isinstance(inputs, Tensor) and tuple(inputs.shape[1:]) != tuple(data.input_shape):
        raise ConfigError(
            f"data={data.name}: a sample of its {name} split is {list(inputs.shape[1:])}, and input_shape says "
            f"{list(data.input_shape)}."
        )


def copy_for_worker(split: Split, workers: int | str = "auto", name: str = "") -> Split:
    """A split whose dataset is a copy, made as for a process that loads: what it opens when it is read stays there.

    Raises:
        ConfigError: It cannot be sent to a process, and `workers` is a number of them.
    """
    if not workers or not isinstance(split, DatasetSplit):
        return replace(split)  # with a loader of its own
    try:
        dataset, plain, collate = as_a_worker_gets_it((split.dataset, split.plain, split.collate))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        if workers == "auto":  # will load them where they are
            return replace(split)
        raise ConfigError(
            f"num_workers={workers}: the dataset of the {name} split cannot be sent to the processes that load it: "
            f"{error}. Functions and classes must stand at the top of a module (no lambda, none inside of a function), "
            "and files be opened when a sample is read; or set num_workers=0."
        ) from error
    except Exception:  # what only a process that is just starting may be sent
        return replace(split)
    return replace(split, dataset=dataset, plain=plain, collate=collate)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Put a mistake in the code of others into one sentence, where it is none already."""
    try:
        yield
    except ConfigError:
        raise
    except BrokenFile as error:
        raise ConfigError(error.in_short()) from error
    except Exception as error:
        raise ConfigError(f"{what}: {_words(error)}") from error


def shapes_of(tree: Any) -> str:
    """Shapes and types of the tensors in a batch."""

    def of(leaf: Any) -> str:
        if not isinstance(leaf, Tensor):
            return type(leaf).__name__
        return f"{list(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}"

    return str(tree_map(of, tree)).replace("'", "")


def _words(error: Exception) -> str:
    """What an error says in one line, and where in other code than torch's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/torch/" not in frame.filename and frame.filename != __file__]
    frame = (own or frames)[-1]
    said = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {said} [{frame.name}, line {frame.lineno} of {frame.filename}]"
