"""FlagGems keeps what it has tuned in a database: can it be used, by this process and at once?"""

import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import psutil

from sglang_fl.diagnostics.doctor.configured import configured
from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem, unknown
from sglang_fl.diagnostics.doctor.foreign import variable
from sglang_fl.diagnostics.doctor.kernel_caches import flag_gems_folder, may_run_flag_gems
from sglang_fl.diagnostics.doctor.launch import Launch

__all__ = ["flag_gems_database"]

WHAT = "FlagGems' database"
URL = "FLAGGEMS_DB_URL"
#: How long doctor waits for a lock, or for a server. FlagGems waits 5 s or more in each kernel that it tunes.
SECONDS = 2
#: Types of file systems on which a lock of SQLite's does not hold for other machines, or takes its time.
NETWORK = (
    *("nfs", "cifs", "smb", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "afs"),
    *("fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.juicefs", "fuse.ceph"),
)
#: Where servers of databases listen.
PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}
_OTHER_FOLDER = "FLAGGEMS_CACHE_DIR=FOLDER names another one, on a local disk and for this server alone"
_ESCAPES = "in a user's name or a password write / as %2F, # as %23, ? as %3F, [ as %5B, ] as %5D"


def flag_gems_database(launch: Launch) -> Iterator[Finding]:
    """Can FlagGems, where its kernels may run, lock its database, and is it on this machine?"""
    configuration = configured()
    if configuration is None or not may_run_flag_gems(configuration):
        return
    url = _url(variable(URL) or "")
    if url is None:
        yield unknown(WHAT, f"{URL} cannot be read as a URL", _ESCAPES)
        return
    if url.scheme and not url.scheme.startswith("sqlite"):
        yield _of_server(url)
        return
    if url.scheme and url.path in ("", "/", "/:memory:"):
        yield ok(WHAT, f"{URL} keeps it in memory: each start tunes its kernels again")
        return
    files = [Path(url.path[1:])] if url.scheme else sorted(_folder().glob("*.db"))
    network = _network(files[0].parent if url.scheme else _folder())
    if network is not None:
        text = (
            f"{network}: SQLite's locks do not hold there between machines, and cost each tuned kernel time"
        )
        yield problem(WHAT, text, _OTHER_FOLDER)
        return  # a lock that is asked for there may not come back
    for file in files:
        yield _of_file(file)
    if not files:
        yield ok(WHAT, f"none in {_folder()} yet: the first start tunes its kernels")


def _url(text: str) -> SplitResult | None:
    """Return the parts of a URL; None where a password, which an error would show, was taken for another."""
    try:
        url = urlsplit(text)
        url.port  # noqa: B018 - it is read here, and raises where it is no number
    except ValueError:
        return None
    is_cut = "@" not in url.netloc and "@" in f"{url.path}{url.query}{url.fragment}"
    return None if url.netloc and is_cut else url


def _folder() -> Path:
    return flag_gems_folder() / "config_cache"


def _of_file(file: Path) -> Finding:
    if not file.exists():
        return ok(WHAT, f"{file} is not there yet: the first start tunes its kernels")
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", SECONDS, uri=True)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            return problem(WHAT, f"{file} cannot be written: {error}", _OTHER_FOLDER)
        text = (
            f"{file} is locked{_holders(file)}: FlagGems waits for it in each kernel that it tunes, and fails"
        )
        return problem(WHAT, text, f"end that process, or {_OTHER_FOLDER}")
    except sqlite3.DatabaseError as error:
        return problem(WHAT, f"{file} is damaged: {error}", "delete it: what it kept is tuned again")
    return ok(WHAT, f"{file} can be locked and written")


def _holders(file: Path) -> str:
    """Name the other processes that have a file open, as far as the system lets us see them."""
    found = []
    for process in psutil.process_iter(["pid", "name"]):
        try:
            opened = {entry.path for entry in process.open_files()}
        except (psutil.Error, OSError):
            continue
        if str(file.resolve()) in opened and process.pid != os.getpid():
            found.append(f"{process.pid}, {process.info['name']}")
    return f" (process {'; '.join(found)})" if found else ""


def _network(folder: Path) -> str | None:
    """Say on which network file system a folder lies, or None."""
    place = folder.resolve()
    mounts = [m for m in psutil.disk_partitions(all=True) if place.is_relative_to(m.mountpoint)]
    if not mounts:
        return None
    mount = max(mounts, key=lambda mount: len(mount.mountpoint))
    return (
        f"{folder} lies on {mount.fstype} ({mount.mountpoint})" if mount.fstype.startswith(NETWORK) else None
    )


def _of_server(url: SplitResult) -> Finding:
    """Judge a database on a server; its URL may hold a password, which is not shown."""
    kind = url.scheme.partition("+")[0]
    port = url.port or PORTS.get(kind)
    if url.hostname is None or port is None:
        return unknown(WHAT, f"{URL} names a {kind} database: whether it can be reached cannot be told")
    where = f"the {kind} database of {URL} at {url.hostname}:{port}"
    try:
        socket.create_connection((url.hostname, port), SECONDS).close()
    except OSError as error:
        text = f"{where} is not reached: {error.strerror or error}; the first kernel that is tuned fails"
        return problem(WHAT, text, f"unset {URL}: FlagGems then keeps a file in {_folder()}")
    return ok(WHAT, f"{where} answers: each kernel that is tuned waits for it")
