"""How the programs are started: by what name, from which directory, in what environment, with which streams."""

import os
import shlex
import subprocess
import sys

import pytest
from kill_loop import OWN, place
from PIL import Image
from processes import REPOSITORY, rows, summary, train

import launcher
from launcher.__main__ import COMMANDS

LAUNCHER = REPOSITORY / "launcher"
RUN = ["data._target_=own.load", "model.hidden=[4]", "epochs=1", "threads=1", "device=cpu"]
LOADED = OWN.replace("import Data, TensorSplit", "import Data, DatasetSplit, TensorSplit").replace(
    '    return Data("own", "classification", (5,), classes, part(n), part(30), part(30))',
    '    return Data("own", "classification", (5,), classes, *(DatasetSplit(Samples(part(m))) for m in (n, 30, 30)))',
) + (
    "\nclass Samples(torch.utils.data.Dataset):\n"
    "    def __init__(self, part):\n        self.part = part\n"
    "    def __len__(self):\n        return len(self.part)\n"
    "    def __getitem__(self, number):\n        return self.part.inputs[number], self.part.targets[number]\n"
)
# Names of the standard library that multiprocessing, logging and tempfile import, and of packages that are imported.
HIDING = ["random", "queue", "launcher", "logging", "socket", "tempfile", "signal", "struct", "types", "wandb", "torch",
          "numpy", "hydra", "omegaconf", "accelerate", "matplotlib", "rich", "check", "config"]  # fmt: skip


def run(words, directory, environment=None, **more):
    """A command to its end."""
    more = {"capture_output": True, "text": True, "timeout": 120} | more
    return subprocess.run(words, cwd=directory, env=os.environ | (environment or {}), **more)


@pytest.fixture
def hiding(tmp_path):
    """A working directory whose files have the names of modules, and a module of a person's own."""
    for name in HIDING:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} of the working directory')\n")
    return place(tmp_path, LOADED)


CONSOLE = (
    "import sys; sys.argv[:1] = ['/bin/launcher', 'train']; sys.path[0] = '/bin'; "
    "from launcher.__main__ import main; main()"
)
GROUP = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
STARTS = {
    "file": [sys.executable, f"{LAUNCHER}/train.py"],
    "console": [sys.executable, "-c", CONSOLE],
    "module": [sys.executable, "-m", "launcher.train"],
    "safe": [sys.executable, "-P", f"{LAUNCHER}/train.py"],
    "sweep": [sys.executable, f"{LAUNCHER}/train.py", "-m", "seed=0,1", "hydra.sweep.dir=run"],
    "torchrun": [sys.executable, "-P", *GROUP, f"{LAUNCHER}/train.py"],
}
INSTALLED = {"PYTHONPATH": str(REPOSITORY)}


@pytest.mark.parametrize(
    "start", [pytest.param(s, marks=() if s in ("file", "sweep") else pytest.mark.soak) for s in STARTS]
)
def test_files_with_the_names_of_modules_hide_nothing(start, hiding):
    """In the process itself, in those that load samples, in a sweep's and in W&B's; own.py is found in all of them."""
    if start == "module":  # which Python looks for in the working directory, before anything of ours runs
        for name in ("launcher", "types"):
            (hiding / f"{name}.py").unlink()
    own = [] if start == "sweep" else ["hydra.run.dir=run"]
    done = run(
        [*STARTS[start], *RUN, *own, "wandb.mode=offline"], hiding, INSTALLED if start in ("console", "module") else {}
    )
    assert done.returncode == 0 and "of the working directory" not in done.stdout + done.stderr, done.stderr
    for path in hiding.glob("run/seed=*") if start == "sweep" else [hiding / "run"]:
        assert summary(path)["status"] == "finished"
        assert list(path.glob("wandb/offline-run-*/*.wandb")), "W&B's process"


def test_a_command_is_a_module_and_the_rooms_commands_are_all_there():
    modules = {module for module, _ in COMMANDS.values()}
    files = [
        file
        for file in LAUNCHER.glob("commands/[a-z]*.py")
        if "\ndef command(argv" in file.read_text() or "@of_" in file.read_text()
    ]
    assert modules == {"launcher.train", *(f"launcher.commands.{file.stem}" for file in files)}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_starts_there(command, hiding):
    words = CONSOLE.replace("'train'", f"'{command}'")
    done = run([sys.executable, "-c", words, "--help"], hiding, INSTALLED)
    assert done.returncode == 0 and done.stdout and not done.stderr, done.stderr


@pytest.mark.parametrize(
    ("words", "status", "expected"),
    [
        ([], 2, "usage: launcher COMMAND"), (["--help"], 0, "find-lr"), (["--version"], 0, launcher.__version__),
        (["evalute", "run_dir=x"], 2, "Did you mean `launcher evaluate`?"), (["find_lr"], 2, "launcher find-lr"),
        (["optimizer=sgd"], 2, "To train: launcher train optimizer=sgd"),
    ],
)  # fmt: skip
def test_the_console_says_what_there_is(words, status, expected, tmp_path):
    done = run([sys.executable, "-m", "launcher", *words], tmp_path, INSTALLED)
    assert done.returncode == status and expected in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_no_module_of_the_launcher_has_the_name_of_one_of_pythons():
    """Its directory is first on the path while a file of it imports Python's own."""
    assert not {file.stem for file in LAUNCHER.glob("*.py")} & sys.stdlib_module_names


@pytest.mark.parametrize("start", ["file", "console", "module"])
def test_a_deleted_working_directory_is_a_sentence(start, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    done = run(["bash", "-c", f"cd {gone}; rmdir {gone}; {shlex.join(STARTS[start])}"], tmp_path, INSTALLED)
    assert done.returncode == 2 and "error: the working directory is gone" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_module_of_ones_own_with_the_name_of_an_installed_one_is_named(hiding):
    (hiding / "wandb.py").write_text("def load():\n    pass\n")
    words = [*STARTS["file"], "data._target_=wandb.load"]
    done = run(words, hiding)
    assert done.returncode == 2 and "wandb.py here is hidden by" in done.stderr, done.stderr


def test_what_a_dataset_starts_finds_the_environment_and_the_signals_as_they_are(tmp_path):
    """The processes that load samples are started with variables and blocked signals of their own."""
    code = LOADED.replace(
        "    def __getitem__(self, number):\n",
        "    def __getitem__(self, number):\n"
        "        import os, signal, subprocess, sys\n"
        "        assert not {'PYTHONSAFEPATH', 'PYTHONWARNINGS'} & os.environ.keys(), os.environ\n"
        "        assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
        "        if number == 3:\n"
        "            child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "            child.terminate()\n"
        "            assert child.wait(20) == -15\n",
    )
    done = run([*STARTS["file"], *RUN, "hydra.run.dir=run", "wandb.mode=disabled"], place(tmp_path, code))
    assert done.returncode == 0, done.stderr


# --- Streams that nobody reads, or that cannot be written ------------------------------------------------------------

MORE = [*STARTS["file"], *RUN, "hydra.run.dir=run", "wandb.mode=disabled", "log_every=1", "batch.global_size=12"]


def shell(line, directory, *words):
    """A line for bash, in which "$@" are words; it fails where the first of a pipe does."""
    return run(["bash", "-c", f"set -o pipefail; {line}", "bash", *words], directory)


@pytest.mark.parametrize(
    "how",
    [
        '"$@" | head -n 1',
        '"$@" <&- >&- 2>&-',
        pytest.param('"$@" > /dev/full', marks=pytest.mark.soak),
        pytest.param('"$@" >&-', marks=pytest.mark.soak),
        pytest.param('"$@" > /dev/full 2>&1', marks=pytest.mark.soak),
        pytest.param('"$@" 2>&1 | true', marks=pytest.mark.soak),
    ],
)
def test_a_run_goes_on_whose_output_cannot_be_written(how, tmp_path):
    done = shell(how, place(tmp_path), *MORE)
    assert done.returncode == 0 and not done.stderr, done.stderr
    log = (tmp_path / "run/train.log").read_text()
    assert "INFO run  " in log and "INFO finished  " in log and summary(tmp_path / "run")["status"] == "finished"
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4, 5], "a closed stream's number went to it"


@pytest.mark.parametrize(
    "asked",
    [
        ["--help"],
        *(
            pytest.param(one, marks=pytest.mark.soak)
            for one in (["--cfg", "job"], ["--cfg", "hydra"], ["--info", "defaults"])
        ),
    ],
)
def test_what_is_only_shown(asked, tmp_path):
    for how in ('"$@" | head -n 1', '"$@" > /dev/full', '"$@" >&-'):
        done = shell(how, tmp_path, *STARTS["file"], *asked)
        assert done.returncode == 0 and not done.stderr, (how, done.stderr)


def test_a_wrong_setting_keeps_its_status(tmp_path):
    for how in ('"$@" 2> /dev/full', '"$@" 2>&-'):
        assert shell(how, tmp_path, *STARTS["file"], "optimizer.lr=-1").returncode == 2


@pytest.mark.soak
def test_the_programs_after_a_run(tmp_path):
    assert run(MORE, place(tmp_path)).returncode == 0
    assert run([*MORE, "-m", "seed=0,1", "hydra.sweep.dir=grid"], tmp_path).returncode == 0
    for program, *words in (
        ["evaluate", "run_dir=run"], ["predict", "run_dir=run", "part=test"], ["export", "run_dir=run"], ["doctor"],
        ["rerun", "run", "dry_run=true"], ["compare", "grid"], ["sync", "."], ["find-lr", *RUN, "find_lr.steps=10"],
    ):  # fmt: skip
        done = shell('"$@" | head -n 1', tmp_path, sys.executable, "-m", "launcher", program, *words)
        assert done.returncode == 0 and not done.stderr, (program, done.stderr)


def test_characters_that_a_terminal_lacks(tmp_path):
    """The spread of seeds is a plus-minus sign."""
    code = (
        "import sys; from launcher.core.streams import keep_streams; keep_streams(); print('\u00b1 \u2500'); print(1)"
    )
    done = run([sys.executable, "-c", code], tmp_path, INSTALLED | {"PYTHONIOENCODING": "ascii"})
    assert done.stdout == "\\xb1 \\u2500\n1\n" and done.returncode == 0


# --- The log ---------------------------------------------------------------------------------------------------------

LOGGING = OWN.replace(
    "def load(n=60, classes=3):\n",
    "import logging\n\nlog = logging.getLogger(__name__)\n\n"
    "def load(n=60, classes=3):\n"
    "    log.info('reads %d samples', n)\n    log.debug('and how')\n"
    "    for library in 'PIL', 'accelerate.utils', 'fontTools.subset', 'urllib3', 'wandb', 'httpx', 'datasets':\n"
    "        logging.getLogger(library).info('chatter')\n        logging.getLogger(library).warning('of weight')\n",
)


def lines_of(directory):
    return [line.split(" ", 3)[2:] for line in (directory / "run/train.log").read_text().splitlines()]


def logged(directory, *words, world=1):
    """What a run with a module that logs prints, and its train.log."""
    done = train([*RUN, "hydra.run.dir=run", *words], place(directory, LOGGING), world).ok()
    return done.out()


@pytest.mark.parametrize("world", [1, 2])
def test_a_module_of_ones_own_logs(world, tmp_path):
    """On the terminal and in train.log, from before there is a run directory; once, and without the libraries'."""
    out = logged(tmp_path, world=world)
    log = lines_of(tmp_path)
    assert log[0] == ["INFO", "reads 60 samples"] and out.startswith("reads 60 samples\n")
    assert out.count("reads 60 samples") == 1 and log.count(["INFO", "reads 60 samples"]) == 1
    assert "chatter" not in str(log) + out and log.count(["WARNING", "of weight"]) == out.count("of weight") == 7
    assert "and how" not in out and any(text.startswith("finished") for _, text in log)


@pytest.mark.parametrize("verbose", ["hydra.verbose=true", "hydra.verbose=own", "hydra.verbose=[own,my.other]"])
def test_verbose(verbose, tmp_path):
    assert "and how" in logged(tmp_path, verbose) and ["DEBUG", "and how"] in lines_of(tmp_path)


def test_hydras_own_ways_to_log(tmp_path):
    out = logged(tmp_path / "default", "hydra/job_logging=default")
    assert "][own][INFO] - reads 60 samples\n" in out
    assert "][own][INFO] - reads 60 samples\n" in (tmp_path / "default/run/train.log").read_text()
    out = logged(tmp_path / "stdout", "hydra/job_logging=stdout")
    assert "reads 60 samples" in out and not (tmp_path / "stdout/run/train.log").exists()
    out = logged(tmp_path / "none", "hydra/job_logging=none")
    assert "reads 60 samples" not in out and "run  " not in out and "eval/loss" in out


@pytest.mark.soak
def test_ones_own_way_to_log(tmp_path):
    """Also for a trial of a sweep, where Hydra's resolver does not know the config."""
    group = tmp_path / "conf/hydra/job_logging"
    group.mkdir(parents=True)
    (group / "mine.yaml").write_text(
        "version: 1\nformatters: {short: {format: 'MINE %(message)s'}}\nhandlers:\n"
        "  console: {class: logging.StreamHandler, formatter: short, stream: ext://sys.stdout}\n"
        "  file: {class: logging.FileHandler, formatter: short,\n"
        "         filename: '${hydra:runtime.output_dir}/of-${seed}.log'}\n"
        "root: {handlers: [console, file], level: INFO}\ndisable_existing_loggers: false\n"
    )
    words = ["--config-dir", str(tmp_path / "conf"), "hydra/job_logging=mine"]
    assert logged(tmp_path, *words).startswith("MINE reads 60 samples\n")
    assert (tmp_path / "run/of-0.log").read_text().startswith("MINE reads 60 samples\nMINE ")
    done = run([*STARTS["sweep"], *RUN, *words, "hydra.sweep.dir=grid", "wandb.mode=disabled"], tmp_path)
    assert done.returncode == 0, done.stderr
    for seed in (0, 1):
        (path,) = tmp_path.glob(f"grid/*seed={seed}*")
        assert "MINE reads 60 samples\n" in (path / "output.log").read_text()
        assert (path / f"of-{seed}.log").read_text().startswith("MINE reads 60 samples\nMINE ")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("hydra.job_logging.root.level=LOUD", "Unknown level: 'LOUD'"),
        ("hydra.job_logging.root.handlers=[none]", "hydra.job_logging: Unable to configure root logger"),
        ("hydra.job_logging.handlers.console.class=os.system", "os.system"),
        ("hydra.job_logging.handlers.console.formatter=${nothing}", "nothing"),
        ("hydra/job_logging=nothing", "There are: default, disabled, launcher, none, stdout"),
        ("hydra.verbose=3", "hydra.verbose=3: must be true, false, or names of loggers"),
    ],
)
def test_a_wrong_way_to_log_is_a_sentence(word, said, tmp_path):
    failed = train([*RUN, "hydra.run.dir=run", word], place(tmp_path, LOGGING)).wait()
    assert failed.status == [2] and said in failed.err() and "Traceback" not in failed.err()
    assert not (tmp_path / "run").exists()


# --- matplotlib's environment ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "matplotlibrc"),
    [
        pytest.param({"MPLBACKEND": "module://matplotlib_inline.backend_of_a_notebook"}, "", marks=pytest.mark.soak),
        pytest.param({"MPLBACKEND": "nonsense"}, "backend: nonsense\n", marks=pytest.mark.soak),
        ({"HOME": "/proc/nothing", "MPLBACKEND": "qtagg", "DISPLAY": ""}, "text.usetex: True\n"),
    ],
)
def test_pictures_do_not_depend_on_what_a_person_has_set_up(environment, matplotlibrc, tmp_path):
    """A module of theirs imports pyplot, and torchmetrics does so. The picture has the usual size."""
    code = OWN.replace("import torch\n", "import torch\nimport matplotlib.pyplot\n", 1)
    words = [*MORE, "metrics=[AUROC]"]
    (place(tmp_path, code) / "matplotlibrc").write_text(matplotlibrc + "savefig.dpi: 30\nfigure.dpi: no number\n")
    done = run(words, tmp_path, environment)
    assert done.returncode == 0 and "atplotlib" not in (tmp_path / "run/train.log").read_text(), done.stderr
    with Image.open(tmp_path / "run/curves.png") as picture:
        assert picture.width == int(2 * 5.6 * 120)
    assert "<svg" in (tmp_path / "run/report.html").read_text()


# --- What another launch has left in the environment -----------------------------------------------------------------

SHORT = [*RUN, "hydra.run.dir=run"]
LEFT = {
    "nothing": {},
    "a rank of one": {"RANK": "0", "WORLD_SIZE": "1"},
    "all of one": {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
    "a local rank": {"LOCAL_RANK": "0"},
    "empty": {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": ""},
    "a world of one": {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"},
    "mpirun -n 1": {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
    "srun --mpi": {"PMI_SIZE": "1", "PMI_RANK": "0", "PMI_FD": "7", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"},
    "mvapich": {"MV2_COMM_WORLD_SIZE": "1", "MV2_COMM_WORLD_RANK": "0"},
    "ranks of mpirun's": {"PMI_RANK": "1", "OMPI_COMM_WORLD_RANK": "1", "MPI_LOCALRANKID": "1"},
    "a port": {"MASTER_ADDR": "node7", "MASTER_PORT": "29500"},
}


@pytest.mark.parametrize("left", LEFT)
def test_what_says_nothing_of_others_leaves_a_run_alone(left, tmp_path):
    done = train(SHORT, place(tmp_path), 1, LEFT[left]).ok()
    assert summary(tmp_path / "run")["world_size"] == 1 and "Traceback" not in done.err()


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 in the environment, and no RANK: left over from another launch?"),
        ({"RANK": "1"}, "RANK=1 in the environment, and no WORLD_SIZE"),
        ({"LOCAL_RANK": "3"}, "LOCAL_RANK=3 in the environment, and no RANK and WORLD_SIZE"),
        ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "8"}, "unset LOCAL_RANK LOCAL_WORLD_SIZE."),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK=one in the environment: must be a whole number."),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1 in the environment: must be a whole number."),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 is not one of 0 to 1"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "no MASTER_ADDR and MASTER_PORT, where the processes meet"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here"}, "and no MASTER_PORT, where"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, "torchrun --nproc_per_node 2 launcher/train.py"),
        ({"PMI_SIZE": "4", "PMI_RANK": "0"}, "PMI_SIZE=4 in the environment: mpirun is no launcher"),
        ({"MV2_COMM_WORLD_SIZE": "2"}, "unset MV2_COMM_WORLD_SIZE."),
    ],
)
def test_what_speaks_of_others_is_named(left, said, tmp_path):
    """For a run, and for a sweep, which has once ended in silence with status 0; each without a directory."""
    for words in (SHORT, ["-m", "seed=0,1", *RUN, "hydra.sweep.dir=run"]):
        failed = train(words, place(tmp_path), 1, left).wait()
        assert failed.status == [2] and said in failed.err() and "Traceback" not in failed.err(), failed.err()
        assert len(failed.err().splitlines()) == 1 and not (tmp_path / "run").exists()


def test_ranks_that_mpirun_was_told_to_hand_over(tmp_path):
    """`mpirun -n 2 sh -c 'RANK=$OMPI_COMM_WORLD_RANK ...'`: what is complete counts, also for Accelerate."""
    train(SHORT, place(tmp_path), 2, {"OMPI_COMM_WORLD_SIZE": "2", "PMI_SIZE": "7", "PMI_RANK": "5"}).ok()
    assert summary(tmp_path / "run")["world_size"] == 2


def test_a_rank_that_has_nothing_to_do_in_a_sweep_says_so(tmp_path):
    left = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    done = train(["-m", "seed=0,1", *RUN], place(tmp_path), 1, left).ok()
    assert done.out() == "rank 1 of 2 has nothing to do: rank 0 executes the sweep.\n"
