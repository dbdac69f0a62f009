"""Distributed multi-GPU training with Hydra, Accelerate and Weights & Biases."""

import os
import sys

TYPE_CHECKING = False  # typing is not imported before the path is in order: the working directory may have one
if TYPE_CHECKING:
    from launcher.run.trained import TrainedModel

__version__ = "0.1.0"

PACKAGE = os.path.dirname(os.path.realpath(__file__))
command: str | None = None  # of the console, such as `train`; None where a file was started
asked_early: list[int] = []  # signals that asked to stop before there was a run


def order_path(added: int) -> None:
    """Let a person's own modules be found in the working directory, after Python's own and the installed ones.

    A file of theirs that is called random.py is then no other module's random. Ends with a sentence, and exit status 2,
    where there is no working directory. The first `added` places go, a script's directory or the working directory:
    this start has put them there.
    """
    shown = sys.excepthook
    sys.excepthook = lambda kind, *rest: None if kind is KeyboardInterrupt else shown(kind, *rest)
    try:
        here = os.getcwd()
    except OSError:
        print("error: the working directory is gone: it was deleted or unmounted. Change to another.", file=sys.stderr)
        sys.exit(2)
    del sys.path[:added]
    for place in (os.path.dirname(os.path.dirname(os.path.abspath(__file__))), here):
        if place not in sys.path:
            sys.path.append(place)
    import signal  # not before: the working directory may have one

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # while modules are imported, of which a traceback would tell
    # A cluster's request to stop waits until the run can follow it (stop_request.py). Of a rank that it ended here
    # nobody could tell that it had not failed: srun ends the others with SIGTERM then, and reports that.
    if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, lambda number, frame: asked_early.append(number))


def load(run_dir: "str | os.PathLike[str]", checkpoint: str | int = "auto", device: str = "cpu") -> "TrainedModel":
    """The model of a run, a torch.nn.Module in evaluation mode, with the preparation of its samples.

    Args:
        run_dir: Run directory. What it names of other people's code is trusted as far as by the commands.
        checkpoint: `auto`: the best where one is kept, else the last; `best`, `last`, or a step.
        device: Where the model is put, as torch names it.

    Raises:
        ConfigError: No run or no such checkpoint is there, or it names what no run is made of.
    """
    from launcher.run import trained  # with torch, which the commands load after their checks

    return trained.load(run_dir, checkpoint, device)


_started = getattr(sys.modules["__main__"], "__file__", None)
if sys.argv[:1] == ["-m"] and any(
    word.partition(".")[0] == "launcher" for word in sys.orig_argv
):  # python -m launcher train
    order_path(1 - sys.flags.safe_path)
elif (
    _started and os.path.dirname(os.path.realpath(_started)) == PACKAGE and os.path.basename(_started) != "__main__.py"
):
    order_path(2 - sys.flags.safe_path)  # started as a file, which has put the place of this package there
