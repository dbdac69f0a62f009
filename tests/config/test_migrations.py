"""Configs of earlier and later launchers."""

import pytest

from launcher.config.components import locate
from launcher.config.migrations import MOVED, READERS, VERSION, migrated, migrated_record, stamped
from launcher.core.errors import ConfigError

NOW = {"loss": {"_target_": "launcher.losses.focal.FocalLoss"}, "seed": 3}


def test_what_is_written_is_read_back_as_it_was():
    assert stamped(NOW)["schema_version"] == VERSION
    assert migrated(stamped(NOW), "here") == NOW


def test_names_from_before_there_were_versions_are_those_of_today():
    assert migrated({"loss": {"_target_": "launcher.losses.FocalLoss"}, "seed": 3}, "here") == NOW
    for name in MOVED.values():
        assert locate(name, "loss").__name__ == name.rpartition(".")[2]


@pytest.mark.parametrize("name", ["diabetes", "iris", "wine"])
def test_tables_that_had_a_file_each_are_named(name):
    then = {"data": {"_target_": f"launcher.data.{name}.load", "split_seed": 0}, "seed": 3}
    now = {"_target_": "launcher.data.sklearn.load", "name": name, "split_seed": 0}
    assert migrated(then, "here") == {"data": now, "seed": 3}


@pytest.mark.parametrize("version", [VERSION + 1, -1, "2", None])
def test_versions_that_nobody_knows_are_one_sentence(version):
    with pytest.raises(ConfigError, match=rf"run_dir=there: .*schema_version={version}, .* up to {VERSION}\."):
        migrated({"schema_version": version}, "run_dir=there")


def test_a_run_on_csv_is_one_on_a_table_that_keeps_every_column():
    then = {"schema_version": 1, "data": {"_target_": "launcher.data.csv.load", "path": "t.csv"}, "seed": 3}
    now = {"_target_": "launcher.data.table.load", "path": "t.csv", "leave_out": False}
    assert migrated(then, "here") == {"data": now, "seed": 3}
    record = {"name": "csv", "reader": {"_target_": "launcher.data.csv.read_alike", "columns": ["a"]}}
    assert migrated_record(record)["reader"] == {"_target_": "launcher.data.table.read_alike", "columns": ["a"]}
    for name in [now["_target_"], *READERS.values()]:
        assert locate(name, "data").__name__ == name.rpartition(".")[2]
