"""A block that does not do what its page says is found."""

import os
import sys
from pathlib import Path

import pytest

from demo.server import ServerError
from tests.docs.blocks import Block
from tests.docs.running import Reader


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return Reader(tmp_path, {**os.environ, "PATH": path})


@pytest.mark.parametrize(
    ("block", "found"),
    [
        (Block("bash", 1, "true\nfalse\ntrue\n"), "exit code 1, not 0"),
        (Block("bash", 1, "false | true\n"), "exit code 1, not 0"),
        (Block("bash", 1, "true\n", exit_code=2), "exit code 0, not 2"),
        (Block("bash", 1, "echo 17 ops\n", output="18 ops\n"), "not printed: 18 ops"),
        (Block("python", 1, "x = undefined\n"), "name 'undefined' is not defined"),
        (Block("toml", 1, "x = \n"), "Invalid value"),
        (Block("yaml", 1, "prefer: flagso\n"), "no such backend kind"),
        (Block("bash", 1, "python -m sglang.launch_server --no-such-flag\n"), "before it was ready"),
    ],
    ids=lambda value: value.code if isinstance(value, Block) else "",
)
def test_a_block_that_fails_says_how(reader: Reader, block: Block, found: str):
    with pytest.raises((AssertionError, ServerError), match=found):
        reader.run(block)


def test_python_below_uses_the_names_above(reader: Reader):
    reader.run(Block("python", 1, "x = 1\n"))
    reader.run(Block("python", 5, "print(x + 1)\n", output="2\n"))


def test_a_file_in_tmp_lies_in_the_folder_of_the_page(reader: Reader, tmp_path: Path):
    reader.run(Block("bash", 1, "echo there > /tmp/there.log\n"))
    assert (tmp_path / "there.log").read_text() == "there\n"
