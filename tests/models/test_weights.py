"""Weights in the files that people have: read as they were written, matched as libraries do, and never executed."""

import argparse
import collections
import copy
import json
import pathlib
import zipfile

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from processes import train
from safetensors.torch import save_file
from torch import nn

from launcher.core.errors import ConfigError
from launcher.models.weights import NAMES
from launcher.training.finetune import begin, load_weights


def net(outputs=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, outputs))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def prefixed(state, prefix):
    return {f"{prefix}{name}": value for name, value in state.items()}


def lightning(state):
    """As Lightning 2 writes it."""
    return {
        "epoch": 3, "global_step": 12, "pytorch-lightning_version": "2.4.0",
        "state_dict": {**prefixed(state, "net."), "criterion.weight": torch.ones(3)}, "loops": {"fit_loop": {}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": ""}}, "optimizer_states": [{"state": {}}],
        "lr_schedulers": [], "hparams_name": "kwargs", "hyper_parameters": {"lr": 0.1, "path": pathlib.Path("a/b")},
    }  # fmt: skip


def compiled(state):
    return {f"0._orig_mod.{n[2:]}" if n.startswith("0.") else n: v for n, v in state.items()}


OTHERS = {"epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(())}}, "param_groups": [{"lr": 0.1}]}}
BESIDE = {
    "args": argparse.Namespace(lr=0.1, output=pathlib.PosixPath("/tmp/x"), nested=argparse.Namespace(a=[1])),
    "best": np.float64(0.5), "count": np.int64(7), "flag": np.bool_(True), "array": np.arange(3.0),
    "rng": np.random.get_state(), "by_name": collections.defaultdict(list, a=[1]), "path": pathlib.PurePosixPath("x"),
    "config": OmegaConf.create({"a": 1, "b": [1, "x", 0.5], "c": "${a}"}),
    "counter": collections.Counter("abc"), "ordered": collections.OrderedDict(a=1), "dtype": np.dtype("float32"),
}  # fmt: skip
FILES = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, **OTHERS},
    "model_state_dict": lambda state: {"model_state_dict": state, **OTHERS},
    "model": lambda state: {"model": state, **OTHERS},
    "net": lambda state: {"net": state, "acc": 93.1, "epoch": 7},
    "ema": lambda state: {"ema": state, "model": {n: torch.zeros_like(v) for n, v in state.items()}, **OTHERS},
    "state_dict_ema": lambda state: {
        "state_dict": {n: torch.zeros_like(v) for n, v in state.items()},
        "state_dict_ema": prefixed(state, "module."),
        "arch": "resnet",
    },
    "nested": lambda state: {"model": {"state_dict": state, "config": {"a": 1}}, **OTHERS},
    "DeepSpeed": lambda state: {"module": state, "dp_world_size": 1},
    "DDP": lambda state: prefixed(state, "module."),
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "compiled in part": compiled,
    "DDP of compiled": lambda state: prefixed(state, "module._orig_mod."),
    "compiled DDP": lambda state: prefixed(state, "_orig_mod.module."),
    "Lightning": lightning,
    "a module of one's own": lambda state: prefixed(state, "student.backbone."),
    "settings beside": lambda state: {"model": state, **BESIDE},
    "parameters": lambda state: {n: nn.Parameter(v) if v.is_floating_point() else v for n, v in state.items()},
    "other things in it": lambda state: {**state, "_extra_state": {"a": 1}, "version": "1.0"},
}


@pytest.mark.parametrize("setting", ["init_from", "model.checkpoint"])
@pytest.mark.parametrize("kind", FILES)
def test_files_as_others_write_them_serve_both_settings(kind, setting, tmp_path):
    given, model = net(seed=1).state_dict(), net()
    torch.save(FILES[kind](given), tmp_path / "w.pth")
    (line,) = begin(model, {setting: str(tmp_path / "w.pth")}, 3, [])
    assert same(model.state_dict(), given) and line.startswith("weights    9 tensors from"), line
    for kinds, words in {
        "Lightning": ["state_dict in", "1 unexpected: criterion.weight", "left in the file: epoch, global_step"],
        "ema": ["ema in", "left in the file: model, epoch, optimizer"],
        "state_dict_ema": ["state_dict_ema in", "state_dict, arch"],
        "nested": ["model.state_dict in"],
        "other things in it": ["2 left in the file: _extra_state, version"],
    }.items():
        assert kind != kinds or all(word in line for word in words), line


def test_files_of_older_protocols_and_formats(tmp_path):
    given = net(seed=1).state_dict()
    torch.save({"model": given, **BESIDE}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    model = net()
    load_weights(model, str(tmp_path / "old.pth"))
    assert same(model.state_dict(), given)
    torch.save({"model": given}, tmp_path / "new.pth", pickle_protocol=5)
    with pytest.raises(ConfigError, match="cannot be read as weights alone"):  # nor by torch
        load_weights(net(), str(tmp_path / "new.pth"))


@pytest.mark.parametrize("setting", ["init_from", "model.checkpoint"])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_directories_and_indices_of_several_files(ending, setting, tmp_path):
    """As transformers and diffusers lay them."""
    given = net(seed=1).state_dict()
    names = list(given)
    write = save_file if ending == "safetensors" else torch.save
    stem = "model" if ending == "safetensors" else "pytorch_model"
    files = [f"{stem}-0000{i}-of-00002.{ending}" for i in (1, 2)]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for place in (whole, parts):
        place.mkdir()
    write(given, whole / f"{stem}.{ending}")
    for i, file in enumerate(files):
        write({name: given[name] for name in names[i::2]}, parts / file)
    index = parts / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"weight_map": {name: files[i % 2] for i, name in enumerate(names)}}))
    assert index.name in NAMES
    for source in (whole, parts, index):
        model = net()
        begin(model, {setting: str(source)}, 3, [])
        assert same(model.state_dict(), given), source
    (parts / files[1]).unlink()
    with pytest.raises(ConfigError, match=rf"{setting}=.*it names the file {files[1]}, which is not beside it"):
        begin(net(), {setting: str(parts)}, 3, [])
    secret = tmp_path / f"elsewhere.{ending}"
    write(given, secret)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, f"../{secret.name}")}))
    with pytest.raises(ConfigError, match=r"it names the file \.\./elsewhere"):
        begin(net(), {setting: str(index)}, 3, [])


def test_a_model_inside_of_the_one_that_is_trained_takes_its_weights(tmp_path):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = net(), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.backbone(x))

    given, outer = net(seed=1).state_dict(), Outer()
    torch.save(given, tmp_path / "w.pth")
    loaded = load_weights(outer, str(tmp_path / "w.pth"))
    assert same(outer.backbone.state_dict(), given)
    assert loaded.missing == ["head.weight", "head.bias"] and not loaded.unexpected


def test_tied_weights_are_brought_by_one_of_their_names(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.out = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.out.weight = self.words.weight

    given = torch.randn(7, 4)
    save_file({"words.weight": given}, tmp_path / "w.safetensors")
    model = Tied()
    loaded = load_weights(model, str(tmp_path / "w.safetensors"))
    assert not loaded.missing and torch.equal(model.out.weight, given)


def test_a_new_last_layer_and_what_is_not_this_model(tmp_path):
    torch.save(net(outputs=7, seed=1).state_dict(), tmp_path / "w.pth")
    (line,) = begin(net(), {"model.checkpoint": str(tmp_path / "w.pth")}, 3, [])
    assert "2 of another shape: 3.weight (7x4, the model has 3x4), 3.bias" in line
    with pytest.raises(ConfigError, match=r"model\.checkpoint=.* has other shapes of 2 tensors: 3\.weight"):
        begin(net(), {"model.checkpoint": str(tmp_path / "w.pth")}, 5, [])
    part = {name: value for name, value in net(seed=1).state_dict().items() if not name.startswith("0.")}
    torch.save(part, tmp_path / "part.pth")
    with pytest.raises(ConfigError, match=r"lacks 2 tensors: 0\.weight, 0\.bias\. .*init_from takes whatever fits"):
        begin(net(), {"model.checkpoint": str(tmp_path / "part.pth")}, 3, [])
    assert "2 missing: 0.weight, 0.bias" in begin(net(), {"init_from": str(tmp_path / "part.pth")}, 3, [])[0]
    both = {"init_from": str(tmp_path / "w.pth"), "model.checkpoint": str(tmp_path / "w.pth")}
    with pytest.raises(ConfigError, match=r"init_from and model\.checkpoint: both name weights"):
        begin(net(), both, 3, [])


# The libraries' own


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet18", "mixer_s16_224"])
def test_models_of_timm_are_loaded_as_timm_does(name, tmp_path):
    """Position embeddings for another size of images among them."""
    timm = pytest.importorskip("timm")
    from timm.models import load_checkpoint

    size = {"img_size": 96} if name.startswith("vit") else {"img_size": 112} if name.startswith("swin") else {}
    if name.startswith("swin"):
        size["window_size"] = 7
    torch.manual_seed(0)
    source = timm.create_model(name, num_classes=10)
    torch.manual_seed(1)
    ours = timm.create_model(name, num_classes=10, **size)
    theirs = copy.deepcopy(ours)
    torch.save(
        {"state_dict": prefixed(source.state_dict(), "model."), "args": argparse.Namespace()}, tmp_path / "l.ckpt"
    )
    torch.save({"state_dict": source.state_dict()}, tmp_path / "w.pth")
    loaded = load_weights(ours, str(tmp_path / "l.ckpt"))
    module = __import__(type(theirs).__module__, fromlist=["x"])
    load_checkpoint(
        theirs, str(tmp_path / "w.pth"), strict=False, filter_fn=getattr(module, "checkpoint_filter_fn", None)
    )
    assert same(ours.state_dict(), theirs.state_dict())
    if name.startswith("vit"):
        assert loaded.resampled == ["pos_embed (1x197x192 to 1x37x192)"] and not loaded.missing
        assert "1 resampled: pos_embed" in str(loaded)


def test_positions_of_torchvisions_transformer_are_interpolated_by_torchvision(tmp_path):
    models = pytest.importorskip("torchvision.models")
    from torchvision.models.vision_transformer import interpolate_embeddings

    arguments = {"patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16, "num_classes": 5}
    source = models.VisionTransformer(image_size=32, **arguments)
    ours = models.VisionTransformer(image_size=48, **arguments)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    loaded = load_weights(ours, str(tmp_path / "w.safetensors"))
    expected = interpolate_embeddings(48, 8, dict(source.state_dict()))
    assert same(ours.state_dict(), expected) and loaded.resampled == ["encoder.pos_embedding (1x17x16 to 1x37x16)"]


def test_a_file_of_torchvision_with_layers_that_the_model_has_not(tmp_path):
    """The second head that googlenet and inception have in training."""
    models = pytest.importorskip("torchvision.models")
    whole = models.googlenet(weights=None, init_weights=False, num_classes=10)
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    ours = models.googlenet(weights=None, init_weights=False, num_classes=10, aux_logits=False)
    (line,) = begin(ours, {"model.checkpoint": str(tmp_path / "w.pth")}, 10, [])
    assert "unexpected: aux1." in line and torch.equal(ours.conv1.conv.weight, whole.conv1.conv.weight)


@pytest.mark.parametrize("setting", ["init_from", "model.checkpoint"])
def test_a_run_says_what_it_took_and_what_it_left(setting, tmp_path):
    pytest.importorskip("torchvision")
    from torchvision.models import resnet18

    state = {"model": prefixed(resnet18(num_classes=7).state_dict(), "module."), "args": argparse.Namespace(lr=1)}
    torch.save(state, tmp_path / "w.pth")
    words = [
        "model=torchvision",
        "model.name=resnet18",
        f"{setting}=w.pth",
        "max_steps=1",
        "eval_every=null",
        "threads=1",
    ]
    run = train([*words, "model.norm=batch", "hydra.run.dir=run", "batch.global_size=8"], tmp_path).ok(120)
    assert (
        "weights    120 tensors from model in w.pth; 2 of another shape: fc.weight (7x512, the model has 10x512)"
        in run.out()
    )
    assert "1 left in the file: args" in run.out()


# Nothing is executed


def trap(callable_, *arguments):
    class Trap:
        def __reduce__(self):
            return callable_, arguments

    return Trap()


class Awake:
    """Does something when its state is set."""

    done = False

    def __setstate__(self, state):
        Awake.done = True


def hostile(mark):
    import importlib
    import os
    import subprocess

    return {
        "os.system": trap(os.system, f"touch {mark}"),
        "eval": trap(eval, f"open({str(mark)!r}, 'w')"),
        "exec": trap(exec, f"open({str(mark)!r}, 'w')"),
        "open": trap(open, str(mark), "w"),
        "subprocess": trap(subprocess.Popen, ["touch", str(mark)]),
        "getattr": trap(getattr, "x", "upper"),
        "import": trap(importlib.import_module, "antigravity"),
        "pathlib": trap(pathlib.Path.touch, pathlib.Path(mark)),
        "torch.load": trap(torch.load, str(mark)),
        "numpy.load": trap(np.load, str(mark)),
        "os.makedirs": trap(os.makedirs, str(mark)),
        "a class": Awake(),
    }


@pytest.mark.parametrize("kind", hostile("x"))
@pytest.mark.parametrize("place", ["beside", "among", "instead"])
def test_nothing_in_a_file_is_executed(kind, place, tmp_path):
    mark = tmp_path / "mark"
    given, thing = net(seed=1).state_dict(), hostile(mark)[kind]
    content = {"beside": {"model": given, "args": thing}, "among": {**given, "x": thing}, "instead": thing}[place]
    torch.save(content, tmp_path / "w.pth")
    model, before = net(), net().state_dict()
    with pytest.raises(
        ConfigError, match=r"cannot be read as weights alone, and nothing in it is executed \(.*\)\. Give a"
    ):
        load_weights(model, str(tmp_path / "w.pth"))
    assert not mark.exists() and not Awake.done and same(model.state_dict(), before)


def test_names_that_the_list_has_are_not_called_either(tmp_path):
    """A path of Windows, which cannot be made here, and an encoder."""
    given = net(seed=1).state_dict()
    torch.save({"model": given, "args": argparse.Namespace(a=1)}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as source, zipfile.ZipFile(tmp_path / "x.pth", "w") as changed:
        for name in source.namelist():
            content = source.read(name).replace(b"cargparse\nNamespace\n", b"cpathlib\nWindowsPath\n")
            changed.writestr(name, content)
    assert b"WindowsPath" in (tmp_path / "x.pth").read_bytes()
    model = net()
    load_weights(model, str(tmp_path / "x.pth"))
    assert same(model.state_dict(), given)
    (tmp_path / "y.pth").write_bytes(b"c_codecs\nencode\n(X\x01\x00\x00\x00xX\x03\x00\x00\x00hextR.")
    with pytest.raises(ConfigError):
        load_weights(net(), str(tmp_path / "y.pth"))
