"""The schema: what it allows, and what is made of it: words, a JSON Schema, the reference page, --help."""

import importlib.util
import json
import re
import subprocess
import sys

import pytest
from omegaconf import OmegaConf
from processes import REPOSITORY

from launcher.commands.schema import of_program
from launcher.config.checks import check_options
from launcher.config.command_line import annotated, documentation
from launcher.config.schema import MAY_DIFFER_ON_RESUME, SCHEMA, SCHEMAS
from launcher.config.tree import UNSTATED
from launcher.core.errors import ConfigError

# For each kind of type: what fits, what does not, and its words.
KINDS = {
    "epochs": ([1, 7, 2**63 - 1], [0, -1, 1.0, True, "1", None, 2**63], "a whole number of at least 1"),
    "max_steps": ([None, 3], [0, "epoch", False], "a whole number of at least 1, or null"),
    "eval_every": (["epoch", None, 2], ["step", 0, 1.5], "a whole number of at least 1, or epoch, or null"),
    "optimizer.lr": ([1, 1e-9], [0, -1, "0.1", True, float("nan"), float("inf")], "a number greater than 0"),
    "optimizer.momentum": ([0, 0.9], [1, -0.1, float("nan")], "a number from 0 to below 1"),
    "mixup.prob": ([0, 1, 0.5], [1.01, -1, float("inf")], "a number from 0 to 1"),
    "layer_decay": ([None, 1, 0.1], [0, 1.1, True], "a number above 0 and at most 1, or null"),
    "compile": ([True, False], [0, 1, "true", None], "true or false"),
    "mixed_precision": (["no", "bf16"], [False, "fp8", None], "no, bf16 or fp16"),
    "wandb.artifacts": ([False, "best", "all"], [True, 0, None, "last"], "false, or best or all"),
    "check": ([True, False, 8, 0], [-1, 1.5, None], "true, false, or a number of devices to plan for"),
    "init_from": ([None, "run"], ["", 3], "a text, or null"),
    "activation_checkpointing": ([False, ["layers.*"]], [True, 0, [], [1], "layers.*"], None),
    "model.hidden": ([[], [3, 4]], [[0], 3, ["3"], None, (3,)], "a list of whole numbers of at least 1"),
    "model.dropout": ([0, 0.5], [1, -0.1, "much", True], "a number from 0 to below 1"),
    "data.random_erasing": ([0, 1], [1.2, -1, "often"], "a number from 0 to 1"),
    "loss.gamma": ([0, 2], [-1, float("inf"), None], "a number of at least 0"),
    "max_time": ([None, 90, 0.5, "90m", "1.5h"], [0, -1, True, "soon", "0m", ""], None),
    "wandb.project": ([None, "a b"], ["", "a/b", "a\\b", "a" * 129, 3], None),
    "wandb.id": ([None, "a-b"], ["a b", "a/b", ""], None),
    "trackers": ([[], ["csv", "wandb"]], [["mlflow2"], "csv", None], None),
    "wandb": ([{}, {"mode": "auto"}], [None, "offline", [], False], "wandb.mode=disabled switches it off"),
}


@pytest.mark.parametrize("key", KINDS)
def test_what_a_setting_may_be(key):
    fit, unfit, words = KINDS[key]
    assert [value for value in fit if not SCHEMA[key].fits(value)] == []
    assert [value for value in unfit if SCHEMA[key].fits(value)] == []
    assert words is None or SCHEMA[key].words == words


def test_every_setting_has_a_line_of_documentation():
    for schema in SCHEMAS.values():
        for key, known in schema.items():
            assert known.about[-1:] == "." and len(known.about) <= 120 and "\n" not in known.about, key


def test_options_of_a_sweep_are_answered_by_their_whole_names():
    good = {"max_points": 3, "max_parallel": None, "metric": None, "metric_mode": None, "devices_per_run": "auto",
            "trials_per_device": 1, "parallel": 2, "max_time_per_run": "2h", "devices": [0]}  # fmt: skip
    check_options(good, "LocalSweep")
    with pytest.raises(ConfigError, match=r"^hydra\.launcher\.max_time_per_run=soon: must be seconds above 0"):
        check_options(good | {"max_time_per_run": "soon"}, "LocalSweep")
    with pytest.raises(
        ConfigError, match=r"^hydra\.sweeper\.max_batch_size=0: must be a whole number of at least 1, or"
    ):
        check_options({"max_batch_size": 0}, "Grid", "hydra.sweeper")


def test_what_is_free_on_resume_are_settings_or_whole_sections():
    for key in MAY_DIFFER_ON_RESUME:
        assert key in SCHEMA or key == "cluster"
    assert {"wandb", "checkpoint", "divergence"} <= set(MAY_DIFFER_ON_RESUME)
    assert not {"optimizer", "batch", "strategy", "strategy.compress", "seed", "eval_every"} & set(MAY_DIFFER_ON_RESUME)


def made_from_the_schema():
    spec = importlib.util.spec_from_file_location("settings_page", REPOSITORY / "docs/settings.py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    return page


def test_the_page_and_the_json_schema_are_those_of_the_code():
    page = made_from_the_schema()
    for file, text in ((page.PAGE, page.page()), (page.JSON, page.schema())):
        assert file.read_text() == text, f"{file.name}: run python docs/settings.py"


def test_the_page_shows_the_defaults_that_are_shipped():
    text = (REPOSITORY / "docs/settings.md").read_text()
    for line in ("| `epochs`\\* | `40` | ", "| `batch.global_size` | `64` | ", "| `find_lr.steps` |", "| `output` |"):
        assert line in text
    assert text.count("\n| `") >= sum(not known.section for known in SCHEMA.values())


def fitting(value, schema, definitions):
    """Whether a value fits a JSON Schema, as far as ours goes: written from the standard, apart from pydantic."""
    if "$ref" in schema:
        return fitting(value, definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return any(fitting(value, one, definitions) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return any(value == one and type(value) is type(one) for one in schema.get("enum", [schema.get("const")]))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    right = {
        "object": isinstance(value, dict), "array": isinstance(value, list), "string": isinstance(value, str),
        "boolean": isinstance(value, bool), "null": value is None, "number": number,
        "integer": number and isinstance(value, int), None: True,
    }[schema.get("type")]  # fmt: skip
    if isinstance(value, dict) and right and "properties" in schema:
        known = schema["properties"]
        extra = schema["additionalProperties"] is not False or not value.keys() - known.keys()
        return extra and all(fitting(value[key], known[key], definitions) for key in value.keys() & known.keys())
    if isinstance(value, str) and right:
        longest = schema.get("maxLength", len(value))
        return schema.get("minLength", 0) <= len(value) <= longest and re.search(schema.get("pattern", ""), value)
    if number and right:
        return value >= schema.get("minimum", value) and value > schema.get("exclusiveMinimum", value - 1)
    return right and (
        not isinstance(value, list) or all(fitting(v, schema.get("items", {}), definitions) for v in value)
    )


def shipped():
    yield "train", REPOSITORY / "conf/train.yaml", None
    for program in ("find_lr", "evaluate", "predict", "export", "rerun"):
        yield program, REPOSITORY / f"conf/{program}.yaml", None
    for file in sorted((REPOSITORY / "conf/experiment").glob("*.yaml")):
        yield "train", file, None
    for group in ("batch", "strategy", "optimizer", "loss", "scheduler", "data", "model"):
        for file in sorted((REPOSITORY / "conf" / group).glob("*.yaml")):
            yield "train", file, group


@pytest.mark.parametrize(("program", "file", "group"), [*shipped()], ids=lambda value: getattr(value, "stem", ""))
def test_the_json_schema_takes_what_is_shipped(program, file, group):
    schema = of_program(program)
    settings = OmegaConf.to_container(OmegaConf.load(file))
    settings.pop("defaults", None) if group else None  # which Hydra takes
    if group in ("data", "model"):  # a null there stands for what must be given, or what the data says
        settings = {key: value for key, value in settings.items() if value is not None}
    if group:
        settings.pop("defaults", None)  # which Hydra takes out
        settings = {group: settings}
    bad = [key for key in settings if not fitting({key: settings[key]}, schema, schema["$defs"])]
    assert bad == []


def test_the_json_schema_refuses_what_the_launcher_refuses():
    schema = of_program("train")
    for settings in (
        {"epochs": "many"},
        {"epoch": 3},
        {"batch": {"size": 3}},
        {"wandb": {"mode": "off"}},
        {"seed": -1},
    ):
        assert not fitting(settings, schema, schema["$defs"]), settings
    for settings in ({"epochs": "${length}"}, {"optimizer": {"mine": 3}}, {"hydra": {"run": {"dir": "x"}}}):
        assert fitting(settings, schema, schema["$defs"]), settings


def test_launcher_schema_prints_it():
    for words, program in (([], "train"), (["find-lr"], "find_lr")):
        done = subprocess.run([sys.executable, "-m", "launcher", "schema", *words], capture_output=True, text=True)
        assert json.loads(done.stdout) == of_program(program)


def test_help_documents_every_setting_without_pydantic():
    code = "import sys; from launcher import train; train.command(['--help']); assert 'pydantic' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    for key in ("epochs", "early_stopping.patience", "optimizer.lr", "wandb.mode"):
        assert SCHEMA[key].about in done.stdout
    assert {key: known.about for key, known in SCHEMA.items()}.items() <= documentation("train").items()
    assert {key: known.about for key, known in SCHEMAS["export"].items()}.items() <= documentation("export").items()


def test_documentation_stands_behind_the_setting_it_is_of():
    text = "a: 1\nb:\n  a: 2\n  c:\n  - a: 3\nd: x\n"
    told = annotated(text, {"a": "First.", "b": "Group.", "b.a": "Second.", "d": "Last."})
    assert told.split("\n")[:3] == [f"{'a: 1':<40} # First.", f"{'b:':<40} # Group.", f"{'  a: 2':<40} # Second."]
    assert "Last." in told and OmegaConf.create(told) == OmegaConf.create(text)


def test_a_value_that_nobody_gave_is_none_that_somebody_could():
    assert not any(known.fits(UNSTATED) for known in SCHEMA.values() if known.words != "anything")
