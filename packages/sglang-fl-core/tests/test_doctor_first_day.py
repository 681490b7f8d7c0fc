"""Doctor, of a chip's first day: grouped heads, FlagGems' database, device backends, others' plugins."""

import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from doctor_rows import Doctor, only_problem

pytestmark = pytest.mark.usefixtures("forked")


# Grouped heads

#: Put in PyTorch's place before doctor's child calls it, as a chip's package for PyTorch does.
_ATTENTION = """
import torch
own = torch.nn.functional.scaled_dot_product_attention

def scaled_dot_product_attention(query, key, value{enable_gqa}):
    return own(query, {key}, {value})

torch.nn.functional.scaled_dot_product_attention = scaled_dot_product_attention
"""
#: Heads are repeated in the wrong order: 0 1 0 1 instead of 0 0 1 1.
_TILED = {"enable_gqa": ", enable_gqa", "key": "key.repeat(1, 2, 1, 1)", "value": "value.repeat(1, 2, 1, 1)"}
_NONE = {"enable_gqa": "", "key": "key", "value": "value"}


@pytest.fixture
def chips_attention(site: Path, monkeypatch) -> Callable[..., None]:
    """Have the children of doctor find another attention in PyTorch."""

    def plant(**parts: str) -> None:
        (site / "sitecustomize.py").write_text(_ATTENTION.format(**parts))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *sys.path]))

    return plant


@pytest.mark.parametrize(
    ("planted", "seen"),
    [(_NONE, "fails: TypeError: scaled_dot_product_attention() got an unexpected"), (_TILED, "is off by ")],
    ids=["no such option", "wrong heads"],
)
def test_attention_that_takes_no_grouped_heads_is_found(doctor: Doctor, chips_attention, planted, seen: str):
    chips_attention(**planted)
    row = only_problem(doctor("--only", "grouped-heads"), "grouped heads")
    assert f"scaled_dot_product_attention(enable_gqa=True) {seen}" in row["text"]
    assert row["remedy"].startswith("--attention-backend sglang_fl ")
    assert "expanded" in row["remedy"]


def test_attention_that_takes_grouped_heads_is_well(doctor: Doctor, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    code, rows = doctor("--only", "grouped-heads")
    assert (code, rows["grouped heads"]["text"]) == (0, "PyTorch's attention takes them on cpu")


@pytest.mark.parametrize(
    ("planted", "code", "text"),
    [
        ("import atexit; atexit.register(print, 'chip closed')", 0, "PyTorch's attention takes them on cpu"),
        ("import sys; sys.stdout = open('/dev/null', 'w')", 2, "its process did not say what came of it"),
    ],
    ids=["a line behind it", "no line"],
)
def test_what_a_chip_prints_is_not_taken_for_the_figure(
    doctor: Doctor, site: Path, monkeypatch, planted: str, code: int, text: str
):
    (site / "sitecustomize.py").write_text(planted)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *sys.path]))
    found, rows = doctor("--only", "grouped-heads")
    assert (found, rows["grouped heads"]["text"].endswith(text)) == (code, True)


# FlagGems' database


@pytest.fixture
def database(tmp_path: Path, monkeypatch) -> Path:
    """A database where FlagGems, which is switched on, keeps it."""
    monkeypatch.setenv("USE_FLAGGEMS", "1")
    monkeypatch.setenv("FLAGGEMS_CACHE_DIR", str(tmp_path / "gems"))
    monkeypatch.delenv("FLAGGEMS_DB_URL", raising=False)
    folder = tmp_path / "gems" / "config_cache"
    folder.mkdir(parents=True)
    file = folder / "TunedConfig_toy_triton_3_6.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE tuned (key)")
    connection.close()
    return file


@pytest.fixture
def holder(database: Path) -> Iterator[int]:
    """Another process that holds the database's lock."""
    code = (
        f"import sqlite3, sys\nc = sqlite3.connect({str(database)!r}, isolation_level=None)\n"
        "c.execute('BEGIN EXCLUSIVE'); print('locked', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"locked\n"
    yield process.pid
    process.communicate()


def test_database_that_another_process_has_locked_is_found(doctor: Doctor, database: Path, holder: int):
    row = only_problem(doctor("--only", "flag-gems-database"), "FlagGems' database")
    assert f"{database} is locked (process {holder}, " in row["text"]
    assert row["remedy"].startswith("end that process, or FLAGGEMS_CACHE_DIR=")


def test_database_that_can_be_locked_is_well_and_unchanged(doctor: Doctor, database: Path):
    before = database.read_bytes()
    code, rows = doctor("--only", "flag-gems-database")
    assert (code, rows["FlagGems' database"]["text"]) == (0, f"{database} can be locked and written")
    assert (database.read_bytes(), list(database.parent.iterdir())) == (before, [database])


def test_database_that_is_none_is_found(doctor: Doctor, database: Path):
    database.write_text("no database at all" * 100)
    row = only_problem(doctor("--only", "flag-gems-database"), "FlagGems' database")
    assert f"{database} is damaged: file is not a database" in row["text"]


@pytest.mark.parametrize(("kind", "is_found"), [("nfs4", True), ("fuse.sshfs", True), ("ext4", False)])
def test_database_on_a_network_file_system_is_found(
    doctor: Doctor, database: Path, monkeypatch, kind: str, is_found: bool
):
    mounts = [("/", "ext4"), (str(database.parents[1]), kind)]
    partitions = [SimpleNamespace(mountpoint=place, fstype=fstype) for place, fstype in mounts]
    monkeypatch.setattr(psutil, "disk_partitions", lambda *_, **__: partitions)
    code, rows = doctor("--only", "flag-gems-database")
    assert code == is_found
    assert (f"lies on {kind} ({database.parents[1]})" in str(rows)) == is_found


@pytest.mark.parametrize("scheme", ["postgresql+psycopg2", "mysql"])
def test_database_of_a_server_that_does_not_answer_is_found_without_its_password(
    doctor: Doctor, database: Path, monkeypatch, scheme: str
):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        monkeypatch.setenv("FLAGGEMS_DB_URL", f"{scheme}://me:secret@127.0.0.1:{port}/tuned")
        row = only_problem(doctor("--only", "flag-gems-database"), "FlagGems' database")
        assert f"of FLAGGEMS_DB_URL at 127.0.0.1:{port} is not reached: Connection refused" in row["text"]
        assert "secret" not in str(row)
        listener.listen()
        assert doctor("--only", "flag-gems-database")[0] == 0


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("sqlite://", "keeps it in memory"),
        ("sqlite:///{folder}/none.db", "/none.db is not there yet"),
        ("sqlite:///{folder}", "cannot be written: unable to open database file"),
    ],
)
def test_database_of_a_url_is_looked_at(
    doctor: Doctor, database: Path, tmp_path: Path, monkeypatch, url: str, text: str
):
    monkeypatch.setenv("FLAGGEMS_DB_URL", url.format(folder=tmp_path))
    assert text in doctor("--only", "flag-gems-database")[1]["FlagGems' database"]["text"]


@pytest.mark.parametrize("password", ["sec#ret", "sec/ret", "sec?ret", "12/34", "12#34", "[sec"])
def test_password_that_is_no_part_of_a_url_is_not_shown(
    doctor: Doctor, database: Path, monkeypatch, password
):
    monkeypatch.setenv("FLAGGEMS_DB_URL", f"postgresql://me:{password}@127.0.0.1:5432/tuned")
    code, rows = doctor("--only", "flag-gems-database")
    row = rows["FlagGems' database"]
    assert (code, row["state"], row["text"]) == (2, "unknown", "FLAGGEMS_DB_URL cannot be read as a URL")
    assert "sec" not in str(rows)
    assert "12" not in str(rows)


# Device backends of PyTorch


@pytest.fixture
def backend(site: Path, metadata_of, monkeypatch) -> Callable[[str], None]:
    """Install a package that ``import torch`` loads."""

    def plant(source: str) -> None:
        metadata_of("torch-toy", "0.1")
        (site / "torch_toy-0.1.dist-info" / "entry_points.txt").write_text(
            "[torch.backends]\ntoy = torch_toy:load\n"
        )
        (site / "torch_toy.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *sys.path]))

    return plant


BROKEN = "def load(): raise ImportError('libtoy.so: undefined symbol: chip_init')\n"


@pytest.mark.parametrize(
    ("autoload", "effect"), [("1", "`import torch` fails with it"), ("0", "AUTOLOAD='0')")]
)
def test_device_backend_that_does_not_load_is_found(
    doctor: Doctor, backend, monkeypatch, autoload: str, effect: str
):
    backend(BROKEN)
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", autoload)
    row = only_problem(doctor("--only", "device-backends"), "device backend toy")
    assert row["text"].startswith("torch-toy 0.1 does not load: ImportError: libtoy.so: undefined symbol")
    assert row["text"].endswith(effect)
    assert row["remedy"].endswith("until then TORCH_DEVICE_BACKEND_AUTOLOAD=0")


@pytest.mark.parametrize(
    ("autoload", "text"),
    [
        ("1", "is loaded by `import torch`"),
        ("0", "AUTOLOAD='0' keeps it out"),
        ("false", "AUTOLOAD='false' keeps it out"),
        ("", "AUTOLOAD='' keeps it out"),
    ],
)
def test_device_backend_that_loads_is_well(doctor: Doctor, backend, monkeypatch, autoload: str, text: str):
    backend("def load(): pass\n")
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", autoload)
    code, rows = doctor("--only", "device-backends")
    assert (code, rows["device backend toy"]["text"].endswith(text)) == (0, True)


def test_device_backend_is_loaded_where_nothing_is_set(doctor: Doctor, backend, monkeypatch):
    backend("def load(): pass\n")
    monkeypatch.delenv("TORCH_DEVICE_BACKEND_AUTOLOAD", raising=False)
    assert doctor("--only", "device-backends")[1]["device backend toy"]["text"].endswith("by `import torch`")


# Other plugins


@pytest.fixture
def brings(site: Path, metadata_of) -> Callable[..., None]:
    """Install the metadata of a package with entry points for SGLang."""

    def plant(name: str, group: str, *points: str) -> None:
        metadata_of(name, "0.2")
        lines = [f"[{group}]", *(f"{point} = toy:load" for point in points)]
        info = site / f"{name.replace('-', '_')}-0.2.dist-info"
        (info / "entry_points.txt").write_text("\n".join(lines))

    return plant


def test_other_packages_and_what_they_bring_are_listed(doctor: Doctor, brings):
    brings("toy-mega", "sglang.srt.plugins", "nvidia_megakernel", "another")
    brings("toy-serve", "sglang.serve_backends", "music")
    code, rows = doctor("--only", "sglang-plugins")
    assert code == 0
    assert rows["toy-mega 0.2"]["text"] == "sglang.srt.plugins: another, nvidia_megakernel"
    assert rows["toy-serve 0.2"]["text"] == "sglang.serve_backends: music"
    assert "sglang-fl-core" not in str(rows)


@pytest.mark.parametrize(("name", "text"), [("llm", "a name of SGLang's own"), ("music", "is refused")])
def test_serve_backend_that_sglang_refuses_is_found(doctor: Doctor, brings, name: str, text: str):
    brings("toy-serve", "sglang.serve_backends", name)
    brings("other-serve", "sglang.serve_backends", name)
    row = only_problem(doctor("--only", "sglang-plugins"), f"serve backend {name}")
    assert text in row["text"]
    assert row["remedy"] == "uninstall other-serve 0.2 or toy-serve 0.2"
