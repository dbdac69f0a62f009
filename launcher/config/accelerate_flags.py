"""What `accelerate launch` was asked for, by its flags or a saved config: taken over, or refused in a sentence.

Accelerate hands all of it to the process by environment variables, but for the flags that it reads for DeepSpeed alone,
which are on its command line. Nothing here imports torch: it is a part of composing the config.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.core.errors import ConfigError

INSTEAD = {
    "ACCELERATE_USE_DEEPSPEED": ("--use_deepspeed", "strategy=fsdp"),
    "ACCELERATE_USE_MEGATRON_LM": ("--use_megatron_lm", "strategy=fsdp"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("--use_parallelism_config", "strategy=fsdp or strategy=ddp"),
}


def adopt(
    settings: Mapping[str, Any], overrides: Sequence[str], environment: Mapping[str, str], command: Sequence[str]
) -> list[str]:
    """The overrides that say to a run what `accelerate launch` was asked for.

    Args:
        settings: The composed config.
        overrides: Of the command line: what a person set there is not changed behind their back.
        environment: Of the process.
        command: Command line of the process that started this one.

    Returns:
        `key=value` each, for settings that are at their defaults; empty where nothing was asked for, or all of it is
        set already.

    Raises:
        ConfigError: It contradicts the config, or there is no such thing here.
    """
    for variable, (flag, instead) in INSTEAD.items():
        if _is_true(environment.get(variable)):
            raise ConfigError(
                f"accelerate launch {flag} (or a saved accelerate config, or {variable} in the environment): not "
                f"supported. Use {instead}."
            )
    if device := environment.get("ACCELERATE_TORCH_DEVICE"):
        raise ConfigError(
            f"ACCELERATE_TORCH_DEVICE={device} in the environment: not supported. Use device=cpu, or choose GPUs by "
            "CUDA_VISIBLE_DEVICES."
        )
    if "ACCELERATE_MIXED_PRECISION" not in environment:  # which `accelerate launch` always sets
        return []
    strategy = settings["strategy"]["name"]
    if _is_true(environment.get("ACCELERATE_USE_FSDP")):
        if strategy != "fsdp":
            raise ConfigError(
                "accelerate launch --use_fsdp (or a saved accelerate config): say strategy=fsdp, whose options are "
                "strategy.block, strategy.reshard_after_forward and the like."
            )
        if _is_true(environment.get("FSDP_OFFLOAD_PARAMS")):
            raise ConfigError("accelerate launch --fsdp_offload_params: strategy=fsdp keeps parameters on the device.")
    flags, found = _flags(command), _Adopted(settings, overrides)
    precision = environment["ACCELERATE_MIXED_PRECISION"].lower()
    if precision != "no" or "mixed_precision" in flags:
        found.take("mixed_precision", precision, "no", "--mixed_precision")
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "NO").upper()
    if backend != "NO":
        options = ("MODE", "USE_FULLGRAPH", "USE_DYNAMIC", "USE_REGIONAL_COMPILATION")
        given = [environment.get(f"ACCELERATE_DYNAMO_{name}", "default") for name in options]
        if backend != "INDUCTOR" or any(value.lower() not in ("default", "false", "none", "") for value in given):
            raise ConfigError(
                f"accelerate launch --dynamo_backend {backend.lower()}: compile=true is torch.compile with inductor "
                "and its default options; no others are supported."
            )
        found.take("compile", True, False, "--dynamo_backend inductor")
    clipping = environment.get("ACCELERATE_GRADIENT_CLIPPING") or flags.get("gradient_clipping")
    clipping = None if clipping in ("none", "None") else clipping
    pieces = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS") or flags.get("gradient_accumulation_steps")
    for name, text, kind in (("GRADIENT_CLIPPING", clipping, float), ("GRADIENT_ACCUMULATION_STEPS", pieces, int)):
        try:
            kind(text or 1)
        except ValueError:
            raise ConfigError(f"ACCELERATE_{name}={text} in the environment: not a number.") from None
    if clipping is not None:
        found.take("clip_grad_norm", float(clipping), None, "--gradient_clipping")
    if pieces is not None and (count := int(pieces)) != 1:
        size, world = settings["batch"]["global_size"], int(environment.get("WORLD_SIZE") or 1)
        share = math.ceil(size / world)
        most = math.ceil(share / max(count, 1))
        if count < 1 or math.ceil(share / most) != count:
            raise ConfigError(
                f"accelerate launch --gradient_accumulation_steps {pieces}: a device's share of {size} samples "
                f"(batch.global_size) is {share}, which cannot be cut so. Set batch.max_per_device in its place."
            )
        found.take("batch.max_per_device", most, None, f"--gradient_accumulation_steps {pieces}")
    return found.words


def asked_processes(command: Sequence[str]) -> int | None:
    """The number behind --num_processes in the command line of `accelerate launch`; None where there is none."""
    number = _flags(command).get("num_processes", "")
    return int(number) if number.isdigit() else None


def asked_threads(command: Sequence[str]) -> int | None:
    """The number behind --num_cpu_threads_per_process; None where there is none."""
    number = _flags(command).get("num_cpu_threads_per_process", "")
    return int(number) if number.isdigit() and int(number) else None


def asks_for_cpu(environment: Mapping[str, str]) -> bool:
    """Whether `accelerate launch --cpu`, a saved config or a person wants no GPU."""
    return _is_true(environment.get("ACCELERATE_USE_CPU"))


def leave_nothing() -> None:
    """Take from the environment what Accelerate would act on by itself, now that the run does."""
    os.environ["ACCELERATE_DYNAMO_BACKEND"] = "NO"
    names = (
        "ACCELERATE_USE_FSDP", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "ACCELERATE_GRADIENT_CLIPPING",
        "ACCELERATE_USE_SAGEMAKER", "ACCELERATE_DOWNCAST_BF16",
    )  # fmt: skip
    for name in names:
        os.environ.pop(name, None)


def parent_command() -> list[str]:
    """Command line of the parent process; empty where the system does not tell."""
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


class _Adopted:
    """Collects overrides.

    Args:
        settings: The composed config.
        overrides: Of the command line.
    """

    def __init__(self, settings: Mapping[str, Any], overrides: Sequence[str]) -> None:
        self.settings = settings
        self.words: list[str] = []
        self.named = {override.lstrip("+~").partition("=")[0] for override in overrides}

    def take(self, key: str, value: Any, default: Any, flag: str) -> None:
        """Set a setting that is at its default.

        Raises:
            ConfigError: It is set to something else.
        """
        now: Any = self.settings
        for part in key.split("."):
            now = now[part]
        if now == value:
            return
        text = str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value
        if now != default or key in self.named:
            shown = "null" if now is None else str(now).lower() if isinstance(now, bool) else now
            raise ConfigError(
                f"{key}={shown}, and accelerate launch (or a saved accelerate config) says {flag}, which is "
                f"{key}={text} here: say it once."
            )
        self.words.append(f"{key}={text}")


def _is_true(text: str | None) -> bool:
    return (text or "").lower() in ("true", "1", "yes", "y", "t", "on")


def _flags(command: Sequence[str]) -> dict[str, str]:
    """The options of `accelerate launch` itself: what stands before the script."""
    names = ("accelerate-launch", "accelerate.commands.launch")
    first = next((i for i, word in enumerate(command[:4]) if Path(word).name in ("launch", "launch.py", *names)), None)
    if first is None or not any("accelerate" in word for word in command[: first + 1]):
        return {}
    found: dict[str, str] = {}
    words = list(command[first + 1 :])
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.endswith(".py"):
            break
        if match := re.fullmatch(r"--([\w-]+?)(?:=(.*))?", word):
            found[match[1].replace("-", "_")] = match[2] if match[2] is not None else following
    return found
