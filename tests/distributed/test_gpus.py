"""Which GPUs a sweep takes of those that nvidia-smi lists: here a stand-in that prints the same."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import processes
import pytest
import torch

from launcher.core.errors import ConfigError
from launcher.distributed import gpus
from launcher.sweep import devices, leases
from launcher.sweep import options as sweep_options
from launcher.sweep.leases import Pool, choose, open_pool
from launcher.sweep.options import LocalOptions

# --- What nvidia-smi tells -------------------------------------------------------------------------------------------

# Its output as NVIDIA's MIG user guide, DataDog/datadog-agent#33120 and NVIDIA/go-nvml#57 show it.
A100 = "NVIDIA A100-SXM4-80GB"
WHOLE = ["GPU-7fdaf0a5-179b-f636-d15d-daf243e3ff16", "GPU-41255406-c9af-f94b-4ebf-9d57ad1853da"]
SLICES = [
    "MIG-feb88891-0321-5fef-9c87-d4af3b54259e",
    "MIG-a25704ba-3a06-5299-a795-fd7cf4d13973",
    "MIG-feb8cafe-1508-5e8d-bb06-d08145b22e01",
]
OTHER = "GPU-950792bf-a01c-3f1a-e122-3473e67f54b2"


def process(pid, name="python", kind="C", instance=("N/A", "N/A")):
    return (
        f"<process_info><gpu_instance_id>{instance[0]}</gpu_instance_id><compute_instance_id>{instance[1]}"
        f"</compute_instance_id><pid>{pid}</pid><type>{kind}</type><process_name>{name}</process_name>"
        "<used_memory>14195 MiB</used_memory></process_info>"
    )


def xml_of(uuid, running=(), mig="Disabled", instances=()):
    parts = "".join(
        f"<mig_device><index>{i}</index><gpu_instance_id>{gi}</gpu_instance_id><compute_instance_id>{ci}"
        "</compute_instance_id><fb_memory_usage><total>9728 MiB</total></fb_memory_usage></mig_device>"
        for i, (gi, ci) in enumerate(instances)
    )
    return (
        f'<gpu id="00000000:07:00.0"><product_name>{A100}</product_name><mig_mode><current_mig>{mig}</current_mig>'
        f"<pending_mig>{mig}</pending_mig></mig_mode><mig_devices>{parts or 'None'}</mig_devices><uuid>{uuid}</uuid>"
        f"<processes>{''.join(running)}</processes><accounted_processes></accounted_processes></gpu>"
    )


def smi(directory, listing, *gpu_xml):
    """A stand-in for nvidia-smi, and what is to stand before the PATH for it to be found."""
    folder = directory / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "list").write_text(listing)
    (folder / "new").write_text(
        '<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">\n<nvidia_smi_log>'
        f"<driver_version>535.216.01</driver_version><attached_gpus>{len(gpu_xml)}</attached_gpus>"
        f"{''.join(gpu_xml)}</nvidia_smi_log>"
    )
    (folder / "new").replace(folder / "query")
    (folder / "nvidia-smi").write_text(
        f'#!/bin/sh\ncase "$*" in\n-L) cat {folder}/list;;\n"-q -x") cat {folder}/query;;\n*) exit 2;;\nesac\n'
    )
    (folder / "nvidia-smi").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def line(index, uuid, model=A100):
    return f"GPU {index}: {model} (UUID: {uuid})\n"


def mig_line(index, uuid, profile="1g.10gb"):
    return f"  MIG {profile:<11} Device {index:>2}: (UUID: {uuid})\n"


MIXED = line(0, WHOLE[0]) + "".join(mig_line(i, uuid) for i, uuid in enumerate(SLICES)) + line(1, WHOLE[1])


@pytest.fixture
def mixed(tmp_path, monkeypatch):
    """Two GPUs, the first in three slices; on the second of them, and on the whole GPU, somebody computes."""
    running = [
        process(34965, "/usr/bin/python3 train.py", instance=(3, 0)),
        process(2201, "/usr/lib/xorg/Xorg", "G"),
    ]
    split = xml_of(WHOLE[0], running, "Enabled", [(1, 0), (3, 0), (5, 0)])
    whole = xml_of(
        WHOLE[1],
        [
            process(55111, "tritonserver"),
            process(9, "[Insufficient Permissions]", "M+C"),
            process(7, "nvidia-cuda-mps-server"),
            process(8, "/usr/bin/gnome-shell", "C+G"),
        ],
    )
    monkeypatch.setenv("PATH", smi(tmp_path, MIXED, split, whole))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_slices_and_who_computes_on_them(mixed):
    first, second = gpus.look()
    assert (first.index, first.model, first.uuid, first.mig) == (0, A100, WHOLE[0], True)
    assert [one.uuid for one in first.slices] == SLICES
    assert [one.instance for one in first.slices] == ["1/0", "3/0", "5/0"]
    assert (second.uuid, second.mig, second.slices) == (WHOLE[1], False, [])
    assert gpus.computing([first, second]) == {
        WHOLE[0]: "pid 34965 (python3)",
        SLICES[1]: "pid 34965 (python3)",
        WHOLE[1]: "pid 55111 (tritonserver), pid 9",
    }


@pytest.mark.parametrize(
    ("given", "expected", "trouble"),
    [
        (None, {**{uuid: uuid for uuid in SLICES}, "1": WHOLE[1]}, ""),
        ("1", {"1": WHOLE[1]}, ""),
        ("1,0", {"1": WHOLE[1], **{uuid: uuid for uuid in SLICES}}, ""),
        (WHOLE[1], {WHOLE[1]: WHOLE[1]}, ""),
        ("GPU-4125, MIG-a2", {"GPU-4125": WHOLE[1], SLICES[1]: SLICES[1]}, ""),
        (f"{SLICES[2]},{SLICES[0]}", {SLICES[2]: SLICES[2], SLICES[0]: SLICES[0]}, ""),
        (f"MIG-{WHOLE[0]}/3/0", {SLICES[1]: SLICES[1]}, ""),  # as drivers before 470 call it
        ("1,2", {"1": WHOLE[1]}, "2 is not one GPU"),
        ("1,-1,0", {"1": WHOLE[1]}, ""),
        ("MIG-feb8", {}, "MIG-feb8 is not one GPU"),  # two begin so
        ("GPU-", {}, "GPU- is not one GPU"),
        (f"1,{WHOLE[1]}", {}, "twice"),
        ("7", {}, "7 is not one GPU"),
    ],
)
def test_every_way_to_name_a_device_leads_to_the_same_lock(given, expected, trouble, mixed):
    found = gpus.visible(gpus.look(), given)
    assert found.devices == expected and list(found.devices) == list(expected)
    assert trouble in found.trouble and bool(trouble) == bool(found.trouble)


def test_a_driver_that_says_less(tmp_path, monkeypatch):
    with monkeypatch.context() as without:
        without.setenv("PATH", str(tmp_path))
        assert gpus.look() is None  # no nvidia-smi
    old = MIXED.replace(SLICES[1], f"MIG-{WHOLE[0]}/3/0")
    monkeypatch.setenv("PATH", smi(tmp_path, old + "Unable to determine the device handle for gpu 0000:B1:00.0\n"))
    first, second = gpus.look()  # no XML of these
    assert first.mig and len(first.slices) == 3 and not second.mig and gpus.computing([first, second]) == {}
    name = f"MIG-{WHOLE[0]}/3/0"
    assert gpus.visible([first, second], name).devices == {name: name}
    (tmp_path / "bin/query").write_text("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver")
    assert len(gpus.look()) == 2
    (tmp_path / "bin/list").write_text("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver")
    assert gpus.look() is None
    (tmp_path / "bin/nvidia-smi").write_text("#!/bin/sh\nsleep 100\n")
    monkeypatch.setattr(gpus, "SECONDS", 0.3)
    assert gpus.look() is None


def test_a_gpu_in_mig_mode_without_a_slice_is_no_device(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", smi(tmp_path, line(0, WHOLE[0]), xml_of(WHOLE[0], mig="Enabled")))
    assert gpus.look()[0].mig and gpus.visible(gpus.look(), None).devices == {}


def test_gpus_of_several_models_are_numbered_as_cuda_does(mixed):
    """CUDA puts the fastest first; a GPU in MIG mode is not among those that it lists."""
    listed = gpus.look()
    assert devices.in_order(listed, [OTHER, WHOLE[1]]) == [listed[1], listed[0]]
    assert devices.in_order(listed, []) == listed


# --- Sweeps ----------------------------------------------------------------------------------------------------------


def options_of(**changes):
    plain = {"devices": "auto", "devices_per_run": "auto", "trials_per_device": 1, "parallel": "auto",
             "max_parallel": None, "max_points": 9, "max_time_per_run": None, "metric": None,
             "metric_mode": None}  # fmt: skip
    return LocalOptions(**plain | changes)


@pytest.mark.parametrize(
    ("changes", "threads"),
    [
        ({}, 16),  # 64 cores, three slices and a GPU
        ({"devices": 2}, 32),
        ({"devices": [0]}, 64),
        ({"devices": 99}, 16),  # refused later
        ({"devices_per_run": 2}, 16),  # two trials at once, of two processes
        ({"devices_per_run": 4}, 16),
        ({"devices_per_run": 8}, 8),
        ({"devices_per_run": "1-4"}, 16),  # four of one process, or one of four
        ({"devices_per_run": "1-4", "parallel": 1}, 16),  # which are four once it has all devices
        ({"devices_per_run": "1-2", "parallel": 1}, 32),
        ({"devices_per_run": "3-8"}, 16),
        ({"max_parallel": 2}, 32),
        ({"max_parallel": 50}, 16),
    ],
)
def test_trials_that_run_at_once_share_the_cores(changes, threads, mixed, monkeypatch):
    monkeypatch.setattr(devices, "DRIVERS", ("/",))
    monkeypatch.setattr(sweep_options, "cores", lambda: [*range(64)])
    for name in ("OMP_NUM_THREADS", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    options = options_of(**changes)
    settings = SimpleNamespace(device="auto", mixed_precision="no", threads="auto")
    assert options.place(settings) == ("gpu", threads)
    settings.device = "cpu"
    limit = options.limit
    assert options.place(settings) == ("cpu", 64 // (limit * options.most) if limit else 1)


def test_devices_are_named_by_how_their_uuid_begins():
    there = {"0": WHOLE[0], SLICES[0]: SLICES[0], SLICES[2]: SLICES[2]}
    assert choose(["GPU-7fda", "MIG-feb88"], there, "gpu") == {"0": WHOLE[0], SLICES[0]: SLICES[0]}
    for asked, said in (
        (["MIG-feb8"], "there is no gpu MIG-feb8"),
        ([0, "GPU-7"], "different ones"),
        (["G"], "no gpu G"),
    ):
        with pytest.raises(ConfigError, match=said):
            choose(asked, there, "gpu")


def test_what_others_compute_on_is_left_to_them(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(leases, "LOOK", 0.0)
    on = {"b": "pid 7 (python)"}
    pool = Pool("gpu", {"0": "a", "1": "b", "2": "c"}, lambda: on)
    first = pool.take(1)
    on["a"] = "pid 8"  # a trial of ours
    assert [lease.device for lease in first] == ["0"] and pool.take(2) is None
    assert pool.holders() == ["1: pid 7 (python)"]
    del on["b"]
    assert [lease.device for lease in pool.take(2)] == ["1", "2"]
    monkeypatch.setattr(leases, "LOOK", 100.0)
    pool.give_back(first)  # which the last look still saw at work
    assert [lease.device for lease in pool.take(1)] == ["0"]


@pytest.mark.parametrize(
    ("asked", "expected", "said"),
    [
        (
            "auto",
            [SLICES[0], SLICES[2], SLICES[1], "1"],
            "is in use by pid 55111 (tritonserver), pid 9: it is taken when",
        ),
        (2, [SLICES[0], SLICES[2]], None),
        (3, [SLICES[0], SLICES[2], SLICES[1]], f"gpu {SLICES[1]} is in use by pid 34965 (python3): it is taken when"),
        ([1], ["1"], "gpu 1 is in use by pid 55111 (tritonserver), pid 9: it is taken all the same"),
    ],
)
def test_devices_in_use_come_last_and_are_said(asked, expected, said, mixed, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    listed = gpus.look()
    pool, notes = open_pool("gpu", gpus.visible(listed, None).devices, asked, 1, listed)
    assert list(pool.locks) == expected
    assert said in "\n".join(notes) if said else notes == []
    free = [device for device in expected if device in (SLICES[0], SLICES[2])] if asked != [1] else ["1"]
    assert [lease.device for lease in pool.take(len(free))] == free and pool.take(1) is None


def test_several_processes_are_not_put_on_slices(mixed):
    listed = gpus.look()
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.devices=auto: 2 processes per trial, and there are MIG"):
        open_pool("gpu", gpus.visible(listed, None).devices, "auto", 2, listed)
    pool, _ = open_pool("gpu", gpus.visible(listed, None).devices, [1], 2, listed)  # refused for its number
    assert list(pool.locks) == ["1"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nvidia_smi_and_torch_mean_the_same_gpus():
    """In a process that ends, which then computes: it is listed, and is not before (nor ever in a container)."""
    code = (
        "import os, torch; from launcher.sweep import devices; from launcher.distributed import gpus; "
        "from launcher.distributed.devices import identity; "
        "listed, own = gpus.look(), f'pid {os.getpid()} '; "
        "found = gpus.visible(listed, os.environ.get('CUDA_VISIBLE_DEVICES')).devices; "
        "assert devices.visible_gpus(listed) == found, found; "
        "assert any(gpu.mig for gpu in listed) or devices._asked_of_torch() == found; "
        "assert identity(0) == next(iter(found.values())); "
        "assert own not in str(gpus.computing(gpus.look())); one = torch.ones(1, device='cuda'); "
        "contained = os.readlink('/proc/self/ns/pid') != 'pid:[4026531836]'; "
        "assert contained or own in gpus.computing(gpus.look())[identity(0)]"
    )
    environment = os.environ | {"PYTHONPATH": str(processes.REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


OWN = """
import os, time
import torch

class Net(torch.nn.Module):
    def __init__(self, in_features, num_classes):
        super().__init__()
        self.layer = torch.nn.Linear(in_features, num_classes)
    def forward(self, x):
        if self.training and "started" not in self.__dict__:
            self.started = True
            with open("notes", "a") as file:
                file.write(os.environ["CUDA_VISIBLE_DEVICES"] + "\\n")
            time.sleep(3)
        return self.layer(x.flatten(1))
"""
SWEEP = """
import sys
from launcher.sweep import devices, leases; from launcher import train
devices.DRIVERS, leases.LOOK = ("/",), 0.2
train.main()
"""


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch cannot use a GPU")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPUs of this machine are not those of the stand-in")
@pytest.mark.soak
def test_a_sweep_takes_what_is_free(tmp_path):
    """One of three GPUs is in use until the others have had a trial each: said, left alone, and taken then."""
    listing = line(0, WHOLE[0]) + line(1, WHOLE[1]) + line(2, OTHER)
    path = smi(tmp_path, listing, xml_of(WHOLE[0]), xml_of(WHOLE[1], [process(4242)]), xml_of(OTHER))
    (tmp_path / "own.py").write_text(OWN)
    words = [
        "-m",
        "seed=1,2,3",
        "model._target_=own.Net",
        "epochs=1",
        "threads=1",
        "wandb.mode=disabled",
        "trackers=[]",
    ]
    environment = os.environ | {"PATH": path, "TMPDIR": str(tmp_path), "PYTHONPATH": str(processes.REPOSITORY)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)

    command = [sys.executable, "-c", SWEEP, *words]
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True)

    def notes():
        return (tmp_path / "notes").read_text().split() if (tmp_path / "notes").exists() else []

    deadline = time.monotonic() + 60
    while len(notes()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    smi(tmp_path, listing, xml_of(WHOLE[0], [process(1)]), xml_of(WHOLE[1]), xml_of(OTHER, [process(2)]))
    out, err = running.communicate(timeout=100)
    assert running.returncode == 0, out + err
    assert "note       gpu 1 is in use by pid 4242 (python): it is taken when that has ended" in out
    assert "devices    gpu 0,2,1, 1 per trial" in out
    assert sorted(notes()[:2]) == ["0", "2"] and notes()[2] == "1"
