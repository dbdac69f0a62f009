"""What `accelerate launch` was asked for: by its own parser and the environments that it makes."""

import subprocess
import sys

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from omegaconf import OmegaConf
from processes import REPOSITORY

from launcher.config import composition
from launcher.config.accelerate_flags import adopt, asked_number
from launcher.config.command_line import parse_arguments
from launcher.core.errors import ConfigError

LEFT = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
SAVED = "compute_environment: LOCAL_MACHINE\nnum_processes: 1\nnum_machines: 1\nuse_cpu: false\n"


@pytest.fixture
def composed(monkeypatch):
    """Compose a run's config in the environment that `accelerate launch` with some flags would give it."""

    def compose(flags, overrides=(), trial=None):
        command = ["/usr/bin/python", "/usr/bin/accelerate", "launch", *flags, "launcher/train.py", *overrides]
        args, *_ = _validate_launch_command(launch_command_parser().parse_args(command[3:]))
        if args.use_deepspeed:
            args.deepspeed_fields_from_accelerate_config = []
            environment = prepare_deepspeed_cmd_env(args)[1]
        elif args.use_fsdp or args.use_megatron_lm:
            args.num_processes = 1
            environment = prepare_multi_gpu_env(args)
        else:
            environment = prepare_simple_launcher_cmd_env(args)[1]
        for name, value in environment.items():
            if name.startswith(("ACCELERATE_", "FSDP_")):
                monkeypatch.setenv(name, value)
        for name in LEFT:
            if name not in environment:
                monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(composition, "parent_command", lambda: command)
        with composition.opened(parse_arguments([]), "train") as (hydra, name):
            return composition.compose(hydra, name, list(overrides), trial=trial)

    return compose


@pytest.mark.parametrize(
    ("flags", "overrides", "adopted"),
    [
        ([], [], []),
        (["--mixed_precision", "bf16"], [], ["mixed_precision=bf16"]),
        (["--mixed-precision=bf16"], ["mixed_precision=bf16"], []),
        (["--mixed_precision=no"], [], []),
        ([], ["mixed_precision=bf16"], []),
        ([], ["experiment=fashion_mnist"], []),
        (["--dynamo_backend", "inductor"], [], ["compile=true"]),
        (["--dynamo_backend", "no"], ["compile=true"], []),
        (["--gradient_accumulation_steps", "4"], [], ["batch.max_per_device=16"]),
        (["--gradient_accumulation_steps=1"], [], []),
        (["--gradient_accumulation_steps=3"], ["batch.max_per_device=22"], []),
        (["--gradient_clipping", "0.5"], [], ["clip_grad_norm=0.5"]),
        (["--gradient_clipping=0.5"], ["clip_grad_norm=0.5"], []),
        (["--mixed_precision", "bf16", "--gradient_clipping=2", "--gradient_accumulation_steps=2"],
         ["batch.global_size=48"], ["mixed_precision=bf16", "clip_grad_norm=2", "batch.max_per_device=24"]),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_at_its_default_is_adopted(composed, flags, overrides, adopted):
    found = composed(flags, overrides)
    assert found.adopted == adopted and found.overrides == [*overrides, *adopted]
    for word in adopted:
        key, _, value = word.partition("=")
        assert str(OmegaConf.select(found.settings, key)).lower() == value or float(value) == OmegaConf.select(
            found.settings, key
        )


@pytest.mark.parametrize(
    ("flags", "overrides", "words"),
    [
        (["--mixed_precision=bf16"], ["mixed_precision='no'"], ["mixed_precision=no", "--mixed_precision", "once"]),
        (["--mixed_precision=no"], ["mixed_precision=bf16"], ["mixed_precision=bf16", "say it once"]),
        (["--mixed_precision=no"], ["experiment=fashion_mnist"], ["mixed_precision=bf16", "say it once"]),
        (["--dynamo_backend=eager"], [], ["--dynamo_backend eager", "compile=true"]),
        (["--dynamo_backend=inductor", "--dynamo_mode=max-autotune"], [], ["compile=true", "default options"]),
        (["--gradient_clipping=1"], ["clip_grad_norm=2"], ["clip_grad_norm=2", "--gradient_clipping"]),
        (["--gradient_clipping=1"], ["clip_grad_value=2"], ["clip_grad_norm=1", "clip_grad_value=2"]),
        (["--gradient_accumulation_steps=4"], ["batch.max_per_device=32"], ["batch.max_per_device=32"]),
        (["--gradient_accumulation_steps=4"], ["batch.global_size=5"], ["a device's share of 5 samples", "is 5"]),
        (["--use_fsdp"], [], ["--use_fsdp", "strategy=fsdp"]),
        (["--use_fsdp", "--fsdp_offload_params=true"], ["strategy=fsdp"], ["--fsdp_offload_params"]),
        (["--use_deepspeed", "--deepspeed_multinode_launcher=standard"], [], ["--use_deepspeed", "strategy=fsdp"]),
        (["--use_megatron_lm"], [], ["--use_megatron_lm", "strategy=fsdp"]),
    ],
    ids=str,
)  # fmt: skip
def test_what_contradicts_or_is_not_there_is_refused(composed, flags, overrides, words):
    with pytest.raises(ConfigError) as error:
        composed(flags, overrides)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value), error.value


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("ACCELERATE_GRADIENT_CLIPPING", "none", []),
        ("ACCELERATE_GRADIENT_CLIPPING", "much", None),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "none", None),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2.5", None),
    ],
)
def test_what_is_no_number_is_refused_but_for_no_clipping(variable, text, words):
    settings = {"strategy": {"name": "ddp"}, "batch": {"global_size": 64}}
    environment = {"ACCELERATE_MIXED_PRECISION": "no", variable: text}
    if words is not None:
        assert adopt(settings, [], environment, []) == words
        return
    with pytest.raises(ConfigError, match=f"{variable}={text} in the environment: not a number"):
        adopt(settings, [], environment, [])


@pytest.mark.parametrize(("devices", "most"), [("auto", 16), ("2", 8), ("4", 4), ("2-4", 8)])
def test_steps_of_accumulation_are_those_of_each_trial_of_a_sweep(composed, devices, most):
    """Whose devices need not be as many as the sweep was started on: 64 samples, cut into 4 on each."""
    words = ["batch.global_size=64", f"hydra.launcher.devices_per_run={devices}"]
    found = composed(["--gradient_accumulation_steps=4"], words, {"num": 0})
    assert found.adopted == [f"batch.max_per_device={most}"]


def test_fsdp_of_accelerate_and_of_the_config_are_one(composed):
    assert composed(["--use_fsdp"], ["strategy=fsdp"]).adopted == []


@pytest.mark.parametrize(
    ("saved", "adopted"),
    [
        ("distributed_type: 'NO'\nmixed_precision: bf16\n", ["mixed_precision=bf16"]),
        ("distributed_type: 'NO'\ndynamo_config:\n  dynamo_backend: INDUCTOR\n", ["compile=true"]),
        ("distributed_type: DEEPSPEED\nmixed_precision: bf16\ndeepspeed_config:\n  zero_stage: 2\n"
         "  deepspeed_multinode_launcher: standard\n", "--use_deepspeed"),
        ("distributed_type: FSDP\nmixed_precision: bf16\nfsdp_config:\n  fsdp_version: 2\n", "--use_fsdp"),
        ("distributed_type: MEGATRON_LM\nmixed_precision: bf16\nmegatron_lm_config:\n  megatron_lm_tp_degree: 1\n",
         "--use_megatron_lm"),
    ],
    ids=["bf16", "dynamo", "deepspeed", "fsdp", "megatron"],
)  # fmt: skip
def test_a_saved_config_counts_as_flags_do(composed, saved, adopted, tmp_path):
    (tmp_path / "saved.yaml").write_text(SAVED + saved)
    flags = ["--config_file", str(tmp_path / "saved.yaml")]
    if isinstance(adopted, list):
        assert composed(flags).adopted == adopted
    else:
        with pytest.raises(ConfigError, match=adopted):
            composed(flags)


@pytest.mark.parametrize(
    ("command", "count"),
    [
        ("python accelerate launch --num_processes 2 launcher/train.py", 2),
        ("accelerate launch --multi_gpu --num-processes=3 -m launcher.train", 3),
        ("accelerate launch launcher/train.py --num_processes 5", None),
        ("accelerate-launch --num_processes 2 launcher/train.py", 2),
        ("torchrun --nproc_per_node 2 launcher/train.py", None),
        ("sh launch --num_processes 2", None),
    ],
)
def test_how_many_processes_were_asked_for(command, count):
    assert asked_number(command.split(), "num_processes") == count


@pytest.mark.soak
def test_a_real_start_trains_as_the_same_settings_do(tmp_path):
    """Two processes: bf16, micro-batches and clipping by flags of accelerate give the record of our own settings."""
    flags = ["--mixed_precision=bf16", "--gradient_accumulation_steps=2", "--gradient_clipping=0.1"]
    start = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    script = [str(REPOSITORY / "launcher/train.py"), "epochs=1", "log_every=1", "trackers=[]", "threads=1"]
    ours = ["mixed_precision=bf16", "clip_grad_norm=0.1", "batch.max_per_device=16"]
    for name, more, words in (("flags", flags, []), ("settings", [], ours)):
        command = [*start, *more, *script, *words, f"hydra.run.dir={tmp_path / name}"]
        environment = {"ACCELERATE_USE_CPU": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True)
    log = (tmp_path / "flags/train.log").read_text()
    assert "adopted    mixed_precision=bf16 clip_grad_norm=0.1 batch.max_per_device=16" in log
    assert "2 micro-batches of 16" in log
    assert (tmp_path / "flags/metrics.jsonl").read_text() == (tmp_path / "settings/metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "strategy=fsdp"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "strategy=fsdp"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "True", "strategy=ddp"),
        ("ACCELERATE_TORCH_DEVICE", "cuda:1", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_what_is_left_in_the_environment_is_refused_in_a_plain_start_too(variable, value, said):
    """Accelerate reads these whoever has set them."""
    settings = {"strategy": {"name": "ddp"}}
    with pytest.raises(ConfigError) as error:
        adopt(settings, [], {variable: value}, ["bash"])
    assert variable in str(error.value) and said in str(error.value)
    assert adopt(settings, [], {}, ["bash"]) == []
