"""A log of several processes: who may read it, and where it never goes."""

import os
import stat
from pathlib import Path

import pytest

from sglang_fl.diagnostics.doctor.writable import why_no_file
from sglang_fl.logs.shared_file import SharedFile


def test_the_file_is_for_its_owner_and_readable_by_his_group_alone(tmp_path: Path):
    before = os.umask(0)
    try:
        SharedFile(tmp_path / "log", "the log").append("line")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o640


def test_two_writers_share_it(tmp_path: Path):
    writers = [SharedFile(tmp_path / "log", "the log") for _ in range(2)]
    for number, writer in enumerate(writers * 2):
        writer.append(str(number))
    assert (tmp_path / "log").read_text() == "0\n1\n2\n3\n"


@pytest.mark.parametrize("target_exists", [True, False])
def test_a_link_is_refused_and_what_it_leads_to_is_left_alone(tmp_path: Path, target_exists: bool):
    target, link = tmp_path / "target", tmp_path / "log"
    if target_exists:
        target.write_text("mine")
    link.symlink_to(target)
    with pytest.raises(OSError, match="it is a link, and no link is followed"):
        SharedFile(link, "the log")
    assert why_no_file(link) == "it is a link, and no link is followed"
    assert link.is_symlink()
    assert target.exists() == target_exists
    assert not target_exists or target.read_text() == "mine"


def test_a_folder_that_is_a_link_is_followed(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    SharedFile(tmp_path / "link" / "log", "the log").append("line")
    assert (tmp_path / "folder" / "log").read_text() == "line\n"
