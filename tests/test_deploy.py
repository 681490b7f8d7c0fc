"""What the container files and the unit promise; ``nox -s lint`` has hadolint read the former too."""

import fnmatch
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_fl.diagnostics.doctor.packages import MEASURED_FLAG_GEMS
from sglang_fl.logs.redaction import is_secret
from tests.deployed import CONTAINERS, UNIT, health_command, instructions

ROOT = Path(__file__).parents[1]
PACKAGES = [path.name for path in (ROOT / "packages").iterdir()]
each_container = pytest.mark.parametrize("file", CONTAINERS, ids=lambda file: file.suffix)


def of(file: Path, *names: str) -> list[str]:
    return [text for name, text in instructions(file) if name in names]


def test_there_is_one_for_a_cpu_and_one_for_nvidia():
    assert [file.suffix for file in CONTAINERS] == [".cpu", ".nvidia"]


@each_container
def test_it_starts_from_a_release_of_an_image(file: Path):
    (image,) = of(file, "FROM")
    tag = image.partition(":")[2]
    assert any(character.isdigit() for character in tag) or tag == "v${SGLANG}"


@each_container
def test_the_server_is_not_root_and_its_health_is_asked(file: Path):
    names = [name for name, _ in instructions(file)]
    assert of(file, "USER") == ["10001"]  # a number, because Kubernetes cannot tell whether a name is root's
    assert "useradd --create-home --uid 10001 " in of(file, "RUN")[-1]
    assert names.index("USER") > max(index for index, name in enumerate(names) if name == "RUN")
    (entry,) = of(file, "ENTRYPOINT")
    *_, port = json.loads(entry)
    assert of(file, "EXPOSE") == [port]
    assert f"http://127.0.0.1:{port}/health'" in health_command(file)[-1]


@each_container
def test_it_holds_no_secret_and_takes_none(file: Path):
    for text in of(file, "ARG", "ENV"):
        assert not is_secret(text.partition("=")[0])
    assert not re.search(r"https?://[^/\s'\"]*@", file.read_text())


@each_container
def test_it_takes_the_wheels_that_the_build_makes(file: Path):
    (copied,) = of(file, "COPY")
    *patterns, place = copied.split()
    assert place == "/tmp/wheels/"
    made = [f"{name.replace('-', '_')}-0.1.0-py3-none-any.whl" for name in PACKAGES]
    taken = {name for pattern in patterns for name in fnmatch.filter(made, pattern)}
    assert len(taken) == len(patterns)
    (words,) = re.findall(r"nox -s build -- ([\w ]+) &&", file.read_text())
    assert taken == {name for name in made if name.split("-")[0].rpartition("_")[2] in words.split()}


def test_the_image_for_nvidia_has_the_flag_gems_that_was_measured():
    (file,) = (file for file in CONTAINERS if file.suffix == ".nvidia")
    pins = set(re.findall(r"(?:flag-gems|sqlalchemy)==[\d.]+", " ".join(of(file, "RUN"))))
    assert f"flag-gems=={MEASURED_FLAG_GEMS}" in pins
    assert pins == set(re.findall(r"(?:flag-gems|sqlalchemy)==[\d.]+", (ROOT / "noxfile.py").read_text()))


needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)


@needs_systemd
def test_systemd_understands_the_unit(tmp_path: Path):
    """The interpreter that it starts must exist: this one stands in for it."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/sglang-fl/bin/python", sys.executable))
    done = analyze("verify", str(unit))
    assert (done.returncode, done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("ProtectHome=", "ProtectHouse="))
    assert "ProtectHouse" in analyze("verify", str(unit)).stderr


@needs_systemd
def test_the_unit_is_hardened():
    """At most 2.5 of 10 by systemd's count; a service without any protection has 9.6."""
    done = analyze("security", "--offline=yes", "--threshold=25", "--no-pager", str(UNIT))
    assert done.returncode == 0, done.stdout[-1000:]


def test_a_wrong_setting_is_not_tried_again():
    """A start that the plugin refuses ends with code 2."""
    assert "\nRestartPreventExitStatus=2\n" in UNIT.read_text()
