"""Packed files, beside the programs that pack them."""

import shutil
import subprocess
import zipfile

import pytest

from launcher.core.errors import ConfigError
from launcher.data.packed import packing, pieces


@pytest.mark.parametrize("program", ["gzip", "bzip2", "xz"])
def test_what_a_program_packs_is_read_in_whole_lines(program, tmp_path):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    content = b"".join(b"%d lines\n" % i for i in range(5000)) + b"no end"
    (tmp_path / "a").write_bytes(content)
    done = subprocess.run([program, "-c", str(tmp_path / "a")], capture_output=True, check=True)
    (tmp_path / "b").write_bytes(done.stdout + done.stdout)  # two packed ones in a row unpack to both
    assert (packing(tmp_path / "a"), packing(tmp_path / "b")) == (None, program)
    found = list(pieces(tmp_path / "b", "data.path", 100))
    assert b"".join(found) == content + content and len(found) > 500
    assert all(piece.endswith(b"\n") for piece in found[:-1])
    (tmp_path / "b").write_bytes(done.stdout[:-30])
    with pytest.raises(ConfigError, match=r"^data\.path: .*b is packed and damaged|^data\.path: cannot read .*b"):
        list(pieces(tmp_path / "b", "data.path"))


def test_an_archive_holds_one_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("folder/a.txt", "one")
        archive.writestr("__MACOSX/._a.txt", "two")
    assert list(pieces(tmp_path / "a.zip", "data.path")) == [b"one"]
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr("b.txt", "three")
    with pytest.raises(ConfigError, match=r"^data\.path: .*a\.zip holds 2 files \(folder/a\.txt, b\.txt\); unpack it"):
        list(pieces(tmp_path / "a.zip", "data.path"))
