"""One job of any Hydra application, in a process of its own: run by Hydra's `run_job`, with what it returns on disk."""

import os
import pickle
import random
import sys
import traceback
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from omegaconf import DictConfig, OmegaConf

from launcher.core import compat_python
from launcher.core.errors import ConfigError
from launcher.core.files import replacing, write_json
from launcher.core.processes import cores
from launcher.run.lock import lock
from launcher.sweep.failure import FAILED
from launcher.sweep.trial_state import State

RETURNED, RAISED = "job_return.pkl", "job_failed.pkl"  # JobReturn of a job that has finished, and of one that failed
JOB = "job.json"  # what a job was started with


def state_of_job(path: Path) -> State:
    """What the files of a job's directory tell, one of AT_REST."""
    if (path / RETURNED).exists():
        return State.FINISHED
    if (path / FAILED).exists():
        return State.FAILED
    return State.INTERRUPTED if (path / JOB).exists() else State.NEW


def program_config(config: DictConfig) -> str:
    """The config that a job's function gets, as YAML with its interpolations: Hydra's own node is not a part of it."""
    return OmegaConf.to_yaml(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))


def read_return(file: Path) -> JobReturn | None:
    """What a job has left in RETURNED or RAISED; None where that is not there, or of other versions of its modules."""
    try:
        found = pickle.loads(file.read_bytes())
    except Exception:  # whatever the classes of others raise
        return None
    return found if isinstance(found, JobReturn) else None


def run(application: bytes, config: bytes, directory: str) -> int:
    """Run a job and leave what it returned in its directory.

    Args:
        application: The function, Hydra's context and the state of its singletons, by cloudpickle.
        config: The composed config with Hydra's node, likewise.
        directory: Of the job.

    Returns:
        The exit status: 0 where the function has returned, 1 where it failed, 2 where another process is in there.
    """
    path = Path(directory)
    try:
        lock(path)  # until this process has ended
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _be_a_process_of_its_own()
    function, context, singletons = pickle.loads(application)
    setup_globals()
    singletons["instances"][Plugins] = Plugins.instance()  # else they are looked for again
    Singleton.set_state(singletons)
    composed = pickle.loads(config)
    for stale in (RETURNED, RAISED):
        (path / stale).unlink(missing_ok=True)
    overrides: Any = OmegaConf.to_container(composed.hydra.overrides.task)
    write_json(path / JOB, {"overrides": overrides, "config": program_config(composed)})
    try:
        returned = run_job(
            task_function=function,
            config=composed,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=context,
        )
    except SystemExit as error:
        returned = failed(overrides, RuntimeError(f"the program called sys.exit({error.code!r})"))
    except Exception as error:  # of a callback, or of the logging's config
        returned = failed(overrides, error)
    status = _leave(path, returned)
    compat_python.run_exit_functions()  # such as W&B's, which multiprocessing leaves out
    return status


def _be_a_process_of_its_own() -> None:
    """Let what was loaded before the fork be as in a process that was started alone.

    Python's generator gets a new seed at a fork, also where the program gave it one while it was imported; NumPy's gets
    none, also where it has not, so that all jobs would draw the same numbers. Threads of libraries are as many as the
    cores that the job stays on: more would wait for each other.
    """
    loaded = sys.modules.get("launcher.sweep.preload_program")  # not in a batch job, which is a process of its own
    if loaded is not None and loaded.python_state is not None:
        random.setstate(loaded.python_state)
    if loaded is not None and not loaded.numpy_is_seeded:
        import numpy

        numpy.random.seed()
    if "OMP_NUM_THREADS" not in os.environ:
        import threadpoolctl

        threadpoolctl.threadpool_limits(len(cores()))


def failed(overrides: list[str], error: BaseException) -> JobReturn:
    """What Hydra is told of a job that failed: it raises the error when somebody asks for the value."""
    returned = JobReturn(overrides=overrides, status=JobStatus.FAILED)
    returned.return_value = error
    return returned


def _error_of(returned: JobReturn) -> BaseException:
    try:
        returned.return_value  # noqa: B018
    except BaseException as error:
        return error
    raise AssertionError("a job that failed has raised something")


def _leave(path: Path, returned: JobReturn) -> int:
    """Write what a job returned, or what it raised, and print that; returns the exit status."""
    if returned.status == JobStatus.COMPLETED:
        try:
            with replacing(path / RETURNED, "wb") as file:
                cloudpickle.dump(returned, file)
            return 0
        except OSError:
            raise
        except Exception as error:
            message = f"what the function returned cannot be kept for the sweep ({type(error).__name__}: {error})"
            returned = failed(list(returned.overrides or []), TypeError(message))
    raised = _error_of(returned)
    traceback.print_exception(raised)
    print(f"failed: {type(raised).__name__}: {raised}", file=sys.stderr, flush=True)
    with replacing(path / RAISED, "wb") as file:
        file.write(_dumped(returned))
    return 1


def _dumped(returned: JobReturn) -> bytes:
    """A job's return by cloudpickle; an exception that does not come back from it is told in words."""
    try:
        found = cloudpickle.dumps(returned)
        pickle.loads(found)
    except Exception:
        error = _error_of(returned)
        return cloudpickle.dumps(
            failed(list(returned.overrides or []), RuntimeError(f"{type(error).__name__}: {error}"))
        )
    return found
