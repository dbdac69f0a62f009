"""What a run was made by: code, packages, devices, command, environment and data; and in words, what differs now."""

import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import launcher
from launcher.config import trust
from launcher.config.migrations import migrated_record
from launcher.core.errors import ConfigError
from launcher.core.files import plain, replacing, write_json
from launcher.run.command_line import launch_words

if TYPE_CHECKING:
    import torch

    from launcher.data.source import Data

FILE, DATA = "provenance.json", "data.json"
PACKAGE = Path(launcher.PACKAGE)
LOOKED_AT = 500  # files of a part at most, at equal distances, by which it is known again
LARGEST_PATCH = 1 << 20  # bytes of uncommitted changes that a run directory keeps
# Variables by prefix that are kept; every other one stays out of the record.
KEPT = (
    "ACCELERATE_", "CUBLAS_", "CUDA_", "CUDNN_", "FI_", "FSDP_", "GLOO_", "HIP_", "HSA_", "KMP_", "LAUNCHER_",
    "MASTER_", "MIOPEN_", "MKL_", "NCCL_", "NVIDIA_", "OMP_", "OPENBLAS_", "PYTHONHASHSEED", "PYTHONPATH", "PYTORCH_",
    "RANK", "ROCR_", "SLURM_", "TORCH", "WANDB_", "WORLD_SIZE",
)  # fmt: skip
# Those of them that can change figures or speed, and do not name a job: what two starts are compared by.
COMPARED = ("CUBLAS_", "CUDNN_", "KMP_", "MIOPEN_", "MKL_", "NCCL_", "OPENBLAS_", "PYTHONHASHSEED", "PYTORCH_")
SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)


def summary() -> dict[str, Any]:
    """The commit of the working directory (see `git_commit`) and the versions of what matters."""
    versions = {"python": platform.python_version(), "launcher": launcher.__version__}
    for package in ("torch", "accelerate", "hydra-core", "numpy", "wandb"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {"git_commit": git_commit(), "versions": versions}


def git_commit() -> str | None:
    """The commit of the working directory, with `+` where files differ from it; None where there is none.

    LAUNCHER_COMMIT in the environment counts more: the code of a job may have been copied long before.
    """
    if commit := os.environ.get("LAUNCHER_COMMIT"):
        return commit
    commit = _git(Path.cwd(), "rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("+" if _git(Path.cwd(), "status", "--porcelain", "--untracked-files=no") else "")


def _git(place: Path, *words: str) -> str | None:
    command = ["git", "-C", str(place), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


# --- What is there now ---------------------------------------------------------------------------------------------


def collect(settings: Mapping[str, Any], world_size: int, device: "torch.device") -> dict[str, Any]:
    """Everything that a start of a run depends on beside its settings and its data; devices are taken to be alike."""
    import torch

    gpu = device.type == "cuda"
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "directory": os.getcwd(),
        "command": shlex.join(masked_words([*launch_words(), *sys.argv[1:]])),
        "code": code(),
        "sources": sources(settings),
        "python": platform.python_version(),
        "packages": packages(),
        "devices": world_size,
        "device": torch.cuda.get_device_name(device) if gpu else "CPU",
        "cuda": torch.version.cuda if gpu else None,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "environment": environment(os.environ),
    }


def code() -> dict[str, dict[str, Any]]:
    """Commit and uncommitted changes of the working directory, and of this package where that is in another repository.

    Returns:
        Per place `commit` and `changes`: the SHA-256 of what `git diff HEAD` gives, None where it gives nothing. Files
        that git does not track are in neither.
    """
    if commit := os.environ.get("LAUNCHER_COMMIT"):
        return {"working directory": {"commit": commit, "changes": None}}
    found = {}
    here, own = (_git(place, "rev-parse", "--show-toplevel", "HEAD") for place in (Path.cwd(), PACKAGE))
    for name, answer in (("working directory", here), ("launcher", own if own != here else None)):
        if answer is not None:
            top, commit = answer.split("\n")
            patch = changes(Path(top))
            found[name] = {"commit": commit, "changes": hashlib.sha256(patch).hexdigest() if patch else None}
    return found


def changes(repository: Path) -> bytes:
    """What `git diff HEAD` gives, its first LARGEST_PATCH + 1 bytes."""
    command = ["git", "-C", str(repository), "diff", "HEAD", "--binary", "--no-color", "--no-ext-diff"]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            patch = process.stdout.read(LARGEST_PATCH + 1)
            process.kill()
            return patch
    except OSError:
        return b""


def sources(settings: Any) -> dict[str, str]:
    """File to SHA-256 of each module outside of installed packages that a `_target_` names."""
    found = {}
    for _, target in trust.targets(settings):
        words = target.split(".")
        for count in range(len(words) - 1, 0, -1):
            module = sys.modules.get(".".join(words[:count]))
            file = getattr(module, "__file__", None)
            if file is None:
                continue
            path = Path(file).resolve()
            if PACKAGE not in path.parents and not _is_installed(path):
                with contextlib.suppress(OSError):
                    found[os.path.relpath(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
            break
    return found


def own_files() -> dict[str, str]:
    """The code that this process has imported and nobody installed, by names relative to where it was found."""
    here, found = Path.cwd(), {}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not str(file).endswith(".py"):
            continue
        path = Path(str(file)).resolve()
        if PACKAGE in path.parents:
            found[f"launcher/{path.relative_to(PACKAGE)}"] = str(path)
        elif here in path.parents and not _is_installed(path):
            found[str(path.relative_to(here))] = str(path)
    return found


def _is_installed(path: Path) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts)


def packages() -> dict[str, str]:
    """Name and version of everything installed, by its directories: reading the metadata would take 0.1 s."""
    found: dict[str, str] = {}
    for place in sys.path:
        with contextlib.suppress(OSError):
            for entry in os.listdir(place or "."):
                name, dash, version = entry.removesuffix(".dist-info").partition("-")
                if entry.endswith(".dist-info") and dash:
                    found.setdefault(name.lower().replace("_", "-"), version)
    return dict(sorted(found.items()))


def processor() -> str:
    """The model of the CPU: on another one sums may be rounded otherwise."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that are kept, without secrets: by name, and passwords within addresses."""
    kept = {name: value for name, value in sorted(variables.items()) if name.startswith(KEPT)}
    return {name: "***" if SECRET.search(name) else _without_password(value) for name, value in kept.items()}


def masked_words(words: Sequence[str]) -> list[str]:
    """The words of a command line, without the value of a setting that is a secret by its name."""
    shown = []
    for word in words:
        key, equals, value = word.partition("=")
        shown.append(f"{key}=***" if equals and SECRET.search(key) and value != "null" else _without_password(word))
    return shown


def _without_password(text: str) -> str:
    return re.sub(r"://[^/@\s]+@", "://***@", text)


# --- The record in a run directory -----------------------------------------------------------------------------------


def write(path: Path, settings: Mapping[str, Any], data: "Data", world_size: int, device: "torch.device") -> list[str]:
    """Write provenance.json, data.json and the uncommitted changes (changes-*.patch) into a run directory.

    A resumed run keeps what its first start wrote, and notes of each later one what differs from that.

    Returns:
        What of the data is no longer as it was at the first start, in words.
    """
    now = collect(settings, world_size, device)
    _keep_changes(path, now["code"])
    record = record_of(data)
    lines = []
    if (path / DATA).is_file():
        lines = data_differences(read_data(path), record)
    else:
        write_json(path / DATA, record, durable=True)
    if (path / FILE).is_file():
        first = read(path)
        later = {key: value for key, value in now.items() if first.get(key) != value}
        now = first | {"later_starts": [*first.get("later_starts", ()), later]}
    write_json(path / FILE, now)
    return lines


def record_of(data: "Data") -> dict[str, Any]:
    """What there is to know of the data, as data.json gives it back, so that two can be compared."""
    found: dict[str, Any] = json.loads(json.dumps(plain(data.record()), default=str))
    for name, part in found["parts"].items():
        if files := getattr(getattr(getattr(data, name), "dataset", None), "samples", None):
            part["files"] = _print_of_files([str(file) for file, *_ in files[:: -(-len(files) // LOOKED_AT)]])
    return found


def _print_of_files(files: Sequence[str]) -> int:
    """A checksum of the names of files, with the folder that each is in, and of their sizes."""
    checksum = 0
    for file in files:
        size = os.path.getsize(file) if os.path.exists(file) else -1
        checksum = zlib.crc32(f"{Path(*Path(file).parts[-2:])} {size}\n".encode(), checksum)
    return checksum


def _keep_changes(path: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    for name, tree in found.items():
        if tree["changes"] is None:
            continue
        patch = changes(Path.cwd() if name == "working directory" else PACKAGE)
        file = path / f"changes-{tree['changes'][:12]}.patch"
        if len(patch) <= LARGEST_PATCH and not file.exists():
            with replacing(file, "wb") as place:
                place.write(patch)


def read(path: Path) -> dict[str, Any]:
    """What the first start of a run wrote of itself."""
    return _read(path / FILE, "packages")


def read_data(path: Path) -> dict[str, Any]:
    """What a run wrote of its data: see `record_of`."""
    return migrated_record(_read(path / DATA, "facts"))


def _read(file: Path, key: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"run_dir={file.parent}: {file.name} cannot be read ({error}); the run wrote it.") from error
    if not isinstance(found, dict) or key not in found:
        raise ConfigError(f"run_dir={file.parent}: {file.name} has no {key!r}; it is not as the run wrote it.")
    return found


# --- In words --------------------------------------------------------------------------------------------------------


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What may make a run come out otherwise now, in words, from what `collect` gave then and gives now."""
    lines = []
    for name in dict.fromkeys((*then["code"], *now["code"])):
        before, after = then["code"].get(name), now["code"].get(name)
        if before is None or after is None:
            lines.append(f"code: the {name} was {'in no' if before is None else 'in a'} repository then, "
                         f"{'in none' if after is None else 'in one'} now")  # fmt: skip
            continue
        if before["commit"] != after["commit"]:
            lines.append(f"commit of the {name}: {before['commit'][:12]} then, {after['commit'][:12]} now")
        if before["changes"] != after["changes"]:
            was = f"those of changes-{before['changes'][:12]}.patch" if before["changes"] else "none"
            are = "none" if not after["changes"] else "others" if before["changes"] else "some"
            lines.append(f"uncommitted changes in the {name}: {was} then, {are} now")
    for file, digest in then["sources"].items():
        if now["sources"].get(file) != digest:
            lines.append(f"{file}: {'has changed' if file in now['sources'] else 'is not used any more'}")
    before, after = ({"python": record["python"], **record["packages"]} for record in (then, now))
    changed = [name for name in sorted({**before, **after}) if before.get(name) != after.get(name)]
    if changed:
        each = [f"{name} {before.get(name, 'absent')} then, {after.get(name, 'absent')} now" for name in changed]
        lines.append(f"packages: {'; '.join(each[:12])}{f'; and {len(each) - 12} more' if len(each) > 12 else ''}")
    for key, words in {
        "devices": "number of devices", "device": "device", "cuda": "CUDA", "cudnn": "cuDNN",
        "processor": "processor", "threads": "CPU threads per process",
    }.items():  # fmt: skip
        if then[key] != now[key]:
            lines.append(f"{words}: {then[key]} then, {now[key]} now")
    old, new = then["environment"], now["environment"]
    for name in sorted({**old, **new}):
        if name.startswith(COMPARED) and old.get(name) != new.get(name):
            lines.append(f"{name}: {old.get(name, 'not set')} then, {new.get(name, 'not set')} now")
    return lines


def unlike(then: Mapping[str, Any], now: Mapping[str, Any], strictly: bool) -> list[str]:
    """What keeps a run from going on with the data that is there now, in words.

    Args:
        then: What `record_of` gave when the run began.
        now: What it gives.
        strictly: Whether all that is known must be the same, as where it was read from another place: else the kind
            and the number of the samples, since checksums of prepared numbers may be others on another machine.
    """
    kind = ("task", "input_shape", "num_outputs", "class_names")
    other = [key for key in then if strictly and key not in (*kind, "parts", "facts")]
    counts = [(part, one["samples"], now["parts"][part]["samples"]) for part, one in then["parts"].items()]
    lines = [f"{part} part: {before} samples then, {after} now" for part, before, after in counts if before != after]
    for keys in (kind, other):
        lines = lines or [
            f"{key.replace('_', ' ')}: {short(then[key])} then, {short(now.get(key))} now"
            for key in keys
            if placeless(then[key]) != placeless(now.get(key)) and (key != "reader" or then[key] is not None)
        ]
    return lines or (data_differences(then, now) if strictly else [])


def placeless(value: Any) -> Any:
    """A value without the place of a tokenizer, which may be moved: its checksum stands beside it."""
    return {key: one for key, one in value.items() if key != "tokenizer"} if isinstance(value, dict) else value


def short(value: Any) -> str:
    """A value in at most 60 characters."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def data_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is no longer the data that a run learned from, in words, from what `record_of` gave then and gives now."""
    lines = []
    for part, before in then["parts"].items():
        after = now["parts"].get(part)
        if after is None or any(after.get(key) != value for key, value in before.items()):
            same = after is not None and after["samples"] == before["samples"]
            count = f"{before['samples']} samples then, {after['samples'] if after else 'none'} now"
            lines.append(
                f"data, {part} part: {'as many samples, of other contents or in another order' if same else count}"
            )
    if then["class_names"] != now["class_names"]:
        lines.append(f"data: classes {then['class_names']} then, {now['class_names']} now")
    return lines
