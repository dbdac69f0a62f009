"""How the programs are started: by what name, from which directory, in what environment, with which streams."""

import os
import shlex
import subprocess
import sys

import pytest
from kill_loop import OWN, place
from processes import REPOSITORY, summary

LAUNCHER = REPOSITORY / "launcher"
RUN = ["data._target_=own.load", "model.hidden=[4]", "epochs=1", "threads=1", "device=cpu"]
LOADED = OWN.replace("import Data, TensorPart", "import Data, DatasetPart, TensorPart").replace(
    '    return Data("own", "classification", (5,), classes, part(n), part(30), part(30))',
    '    return Data("own", "classification", (5,), classes, *(DatasetPart(Samples(part(m))) for m in (n, 30, 30)))',
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
    "import sys; sys.argv[0] = '/bin/launcher-train'; sys.path[0] = '/bin'; from launcher.console import main; main()"
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


PROGRAMS = sorted(file.stem for file in LAUNCHER.glob("*.py") if "sys.path.insert" in file.read_text())


def test_the_programs_are_found():
    assert {"train", "evaluate", "predict", "export", "rerun", "find_lr", "grid", "sync", "doctor", "point"} < set(
        PROGRAMS
    )


@pytest.mark.parametrize("program", [p for p in PROGRAMS if p not in ("point", "tracking", "views")])
def test_every_program_starts_there(program, hiding):
    done = run([sys.executable, f"{LAUNCHER}/{program}.py", "--help"], hiding)
    assert done.returncode == 0 and done.stdout and not done.stderr, done.stderr


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
