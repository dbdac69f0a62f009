"""What `accelerate launch` was asked for, by its flags or a saved config: taken over, or refused in a sentence.

Accelerate hands all of it to the process by environment variables, but for the flags that it reads for DeepSpeed alone,
which are on its command line.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.config.tree import get, key_of
from launcher.core.errors import ConfigError

UNSUPPORTED = {  # a variable: the flag that sets it, and what to use
    "ACCELERATE_USE_DEEPSPEED": ("--use_deepspeed", "strategy=fsdp"),
    "ACCELERATE_USE_MEGATRON_LM": ("--use_megatron_lm", "strategy=fsdp"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("--use_parallelism_config", "strategy=fsdp or strategy=ddp"),
}
LEFT = (  # what Accelerate would act on by itself, which the run does
    "ACCELERATE_USE_FSDP", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "ACCELERATE_GRADIENT_CLIPPING",
    "ACCELERATE_USE_SAGEMAKER", "ACCELERATE_DOWNCAST_BF16",
)  # fmt: skip


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
    _refuse_unsupported(environment, settings["strategy"]["name"])
    if "ACCELERATE_MIXED_PRECISION" not in environment:  # which `accelerate launch` always sets
        return []
    named, words = {key_of(override) for override in overrides}, []
    for key, value, default, flag in _asked(settings, environment, _flags(command)):
        now = get(settings, key)
        if now == value:
            continue
        if now != default or key in named:
            raise ConfigError(
                f"{key}={_text(now)}, and accelerate launch (or a saved accelerate config) says {flag}, which is "
                f"{key}={_text(value)} here: say it once."
            )
        words.append(f"{key}={_text(value)}")
    return words


def _refuse_unsupported(environment: Mapping[str, str], strategy: str) -> None:
    for variable, (flag, instead) in UNSUPPORTED.items():
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
    if "ACCELERATE_MIXED_PRECISION" in environment and _is_true(environment.get("ACCELERATE_USE_FSDP")):
        if strategy != "fsdp":
            raise ConfigError(
                "accelerate launch --use_fsdp (or a saved accelerate config): say strategy=fsdp, whose options are "
                "strategy.block, strategy.reshard_after_forward and the like."
            )
        if _is_true(environment.get("FSDP_OFFLOAD_PARAMS")):
            raise ConfigError("accelerate launch --fsdp_offload_params: strategy=fsdp keeps parameters on the device.")


def _asked(
    settings: Mapping[str, Any], environment: Mapping[str, str], flags: Mapping[str, str]
) -> Iterator[tuple[str, Any, Any, str]]:
    """Each setting that a flag is about, the value that it asks for, the setting's default, and the flag."""
    precision = environment["ACCELERATE_MIXED_PRECISION"].lower()
    if precision != "no" or "mixed_precision" in flags:
        yield "mixed_precision", precision, "no", "--mixed_precision"
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "NO").upper()
    if backend != "NO":
        options = ("MODE", "USE_FULLGRAPH", "USE_DYNAMIC", "USE_REGIONAL_COMPILATION")
        given = [environment.get(f"ACCELERATE_DYNAMO_{name}", "default") for name in options]
        if backend != "INDUCTOR" or any(value.lower() not in ("default", "false", "none", "") for value in given):
            raise ConfigError(
                f"accelerate launch --dynamo_backend {backend.lower()}: compile=true is torch.compile with inductor "
                "and its default options; no others are supported."
            )
        yield "compile", True, False, "--dynamo_backend inductor"
    if (clipping := _number("gradient_clipping", float, environment, flags)) is not None:
        yield "clip_grad_norm", clipping, None, "--gradient_clipping"
    if (count := _number("gradient_accumulation_steps", int, environment, flags)) not in (None, 1):
        size, world = settings["batch"]["global_size"], int(environment.get("WORLD_SIZE") or 1)
        share = math.ceil(size / world)
        most = math.ceil(share / max(count, 1))
        if count < 1 or math.ceil(share / most) != count:
            raise ConfigError(
                f"accelerate launch --gradient_accumulation_steps {count}: a device's share of {size} samples "
                f"(batch.global_size) is {share}, which cannot be cut so. Set batch.max_per_device in its place."
            )
        yield "batch.max_per_device", most, None, f"--gradient_accumulation_steps {count}"


def _number(name: str, kind: type, environment: Mapping[str, str], flags: Mapping[str, str]) -> Any:
    """The number that a flag gives; None where there is none."""
    variable = f"ACCELERATE_{name.upper()}"
    text = environment.get(variable) or flags.get(name)
    if not text or (kind is float and text in ("none", "None")):  # which Accelerate's config asks for no clipping by
        return None
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{variable}={text} in the environment: not a number.") from None


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def asked_number(command: Sequence[str], option: str) -> int | None:
    """The number behind an option of `accelerate launch`, such as num_processes; None where there is none."""
    number = _flags(command).get(option, "")
    return int(number) if number.isdigit() else None


def asks_for_cpu(environment: Mapping[str, str]) -> bool:
    """Whether `accelerate launch --cpu`, a saved config or a person wants no GPU."""
    return _is_true(environment.get("ACCELERATE_USE_CPU"))


def leave_nothing() -> None:
    """Take from the environment what Accelerate would act on by itself, now that the run does."""
    os.environ["ACCELERATE_DYNAMO_BACKEND"] = "NO"
    for name in LEFT:
        os.environ.pop(name, None)


def parent_command() -> list[str]:
    """Command line of the parent process; empty where the system does not tell."""
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


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
