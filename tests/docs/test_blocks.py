"""How the blocks of a page are read."""

from pathlib import Path

import pytest

from tests.docs.blocks import read_blocks

PAGE = """# Page

```bash {norun="needs a GPU, and time"}
false
```

```bash {exit=2}
sglang-fl why rmsnorm
```

It answers:

```
Nearest: rms_norm.
```

```text
no output of anything
```

## Section

- In a list:

  ```python
  x = 1
    # indented
  ```

## Another

```
an example alone
```

<!-- norun: a record -->

```yaml
strict: true
```
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def test_each_block_has_its_line_and_its_code(page: Path):
    blocks = read_blocks(page)
    assert [(block.language, block.line) for block in blocks] == [
        ("bash", 3),
        ("bash", 7),
        ("python", 25),
        ("yaml", 38),
    ]
    assert blocks[2].code == "x = 1\n  # indented\n"


def test_a_block_that_is_not_run_says_why(page: Path):
    reasons = [block.why_not for block in read_blocks(page)]
    assert reasons == ["needs a GPU, and time", None, None, "a record"]


def test_the_plain_block_that_follows_in_the_section_is_the_output(page: Path):
    outputs = [block.output for block in read_blocks(page)]
    assert outputs == [None, "Nearest: rms_norm.\n", None, None]
    assert [block.exit_code for block in read_blocks(page)] == [0, 2, 0, 0]


@pytest.mark.parametrize("words", ['exit=2 norun="needs exit=3, or x"', 'norun="needs exit=3, or x" exit=2'])
def test_exit_code_and_reason_stand_in_any_order(page: Path, words: str):
    page.write_text(f"```bash {{{words}}}\ntrue\n```\n")
    (block,) = read_blocks(page)
    assert (block.exit_code, block.why_not) == (2, "needs exit=3, or x")


@pytest.mark.parametrize("info", ['bash {norun=""}', "bash {skip=1}", "bash please", "python {exit=x}"])
def test_an_info_string_that_says_nothing_valid_is_refused(page: Path, info: str):
    page.write_text(f"```{info}\ntrue\n```\n")
    with pytest.raises(ValueError, match=r"page\.md:1: .* valid are \{norun="):
        read_blocks(page)


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("docker build dist", "docker"),
        ("true && podman run image", "podman"),
        ("systemctl daemon-reload", "systemctl"),
        ("echo | sudo tee file", "sudo"),
        ("echo A=1 >/etc/sglang-fl.env", "/etc/"),
        ("python3 -m venv '/opt/sglang-fl'", "/opt/"),
    ],
)
def test_a_block_that_changes_the_machine_is_refused_where_it_would_be_run(page: Path, code: str, named: str):
    page.write_text(f"# Page\n\n```bash\n{code}\n```\n")
    with pytest.raises(ValueError, match=rf"page\.md:3: the block names '{named}' and would be run"):
        read_blocks(page)
    page.write_text(f'# Page\n\n```bash {{norun="needs root"}}\n{code}\n```\n')
    assert read_blocks(page)[0].why_not == "needs root"


@pytest.mark.parametrize("code", ["cp -r docker-image ./etc/x", "cat folder/opt/file", "pip install sudoku"])
def test_a_block_that_names_something_alike_is_run(page: Path, code: str):
    page.write_text(f"```bash\n{code}\n```\n")
    assert read_blocks(page)[0].why_not is None
