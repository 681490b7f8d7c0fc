"""Every call held against the real ``torch_npu`` wheel, which is unpacked and never imported."""

import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import sglang_fl_ascend

pytestmark = pytest.mark.timeout(300)

VERSION = "2.14.0"
PYTHON = "311"
CACHE = Path(__file__).parents[3] / ".cache" / "wheels"
PACKAGE = Path(sglang_fl_ascend.__file__).parent
WRITTEN = PACKAGE / "simulated/schemas.txt"
MEMBERS = (
    "torch_npu/csrc/aten/npu_native_functions_by_codegen.yaml",
    "torch_npu/op_plugin/meta/",
    "torch_npu/_op_plugin_docs.py",
)

#: For the weights of experts, and in a function that models call beside their layers.
CALLED_BY_SGLANG = {"npu_format_cast", "npu_rotary_mul"}


@pytest.fixture(scope="session")
def wheel() -> Path:
    """A folder with what of the wheel is read here, downloaded once."""
    folder = CACHE / f"torch_npu-{VERSION}"
    stamp = folder / "complete"
    if not stamp.exists() or stamp.read_text() != "\n".join(MEMBERS):
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", PYTHON, "--platform", "manylinux_2_28_x86_64"]
        subprocess.run([*command, "--dest", str(folder), f"torch-npu=={VERSION}"], check=True)
        archive = next(folder.glob("*.whl"))
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder, [name for name in opened.namelist() if name.startswith(MEMBERS)])
        archive.unlink()
        stamp.write_text("\n".join(MEMBERS))  # last, so that an interrupted download is started again
    return folder


def registered(wheel: Path) -> dict[str, str]:
    """Return the wheel's schemas as it registers them: a lone ``self`` is called ``input``."""
    listed = yaml.safe_load((wheel / MEMBERS[0]).read_text())
    schemas = [re.sub(r"\bself\b(?=[,)])", "input", entry["func"]) for entry in listed["custom"]]
    return {schema.partition("(")[0]: schema for schema in schemas}


def written() -> dict[str, str]:
    lines = [line for line in WRITTEN.read_text().splitlines() if not line.startswith("#")]
    return {line.partition("(")[0]: line for line in lines}


def test_the_schemas_that_are_emulated_are_the_wheels(wheel):
    real = registered(wheel)
    assert len(real) > 400
    assert written() == {name: real.get(name) for name in written()}


def test_exactly_the_operators_that_are_called_are_written_down():
    sources = (PACKAGE / "vendor").glob("*.py")
    called = {name for path in sources for name in re.findall(r"torch_npu\.(npu_\w+)\(", path.read_text())}
    assert called | CALLED_BY_SGLANG == written().keys()


def absent_on_310p() -> dict[str, str]:
    """Return the table as it is written: its module needs ``torch_npu``."""
    (table,) = re.findall(
        r"^ABSENT_ON_310P = ({.*?^})", (PACKAGE / "vendor/products.py").read_text(), re.M | re.S
    )
    found: dict[str, str] = ast.literal_eval(table)
    return found


def test_operators_that_a_310p_lacks_are_documented_for_other_products(wheel):
    pages = re.split(r"_add_torch_npu_docstr\(\s*", (wheel / MEMBERS[2]).read_text(encoding="utf-8"))
    for operator, page in absent_on_310p().items():
        assert operator in written()
        if page.startswith("torch_npu"):
            (text,) = (text for text in pages if text.startswith(f'"{operator}"'))
            products = text[re.search("支持的(芯片)?型号", text).start() :]
            assert "Atlas A2" in products
            assert "Atlas 推理系列" not in products


def meta_calls(wheel: Path, *words: str) -> list[Any]:
    script = Path(__file__).parent / "meta_calls.py"
    done = subprocess.run([sys.executable, str(script), str(wheel), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_call_of_every_case_is_taken_and_has_the_contracts_shapes(wheel):
    assert meta_calls(wheel) == []


#: Of which op, what is written wrongly, and what is said of it.
WRONG = [
    ("layer_norm", "weight, bias, eps)", "weight, bias, epsilon=eps)", "Unknown keyword argument 'epsilon'"),
    ("rms_norm", "npu_rms_norm(rows, weight, eps)", "npu_rms_norm(rows, weight, eps=eps)", "argument 'eps'"),
    ("rms_norm", "normed, _, total =", "normed, total =", "too many values to unpack"),
    ("new_gelu", 'approximate="tanh"', '"tanh"', "positional argument"),
    ("rotary_embedding", "mrope_section=list(sections)", "list(sections)", "takes 5 positional argument(s)"),
    ("mrope", "cache_mode=cache_mode", "mode=cache_mode", "Unknown keyword argument 'mode'"),
    ("silu_and_mul", "npu_swiglu(x)", "npu_swiglu(x, 'left')", "Expected a value of type 'int'"),
    ("silu_and_mul", "npu_swiglu", "npu_swigl", "has no attribute 'npu_swigl'"),
    ("fused_moe", "[rows],", "rows,", "Expected a value of type 'List[Tensor]'"),
    ("fused_moe", "weight.transpose(1, 2)", "weight", ""),
    ("decode_attention", "num_heads=", "head_num=", "Unknown keyword argument 'head_num'"),
    ("decode_attention", "attended.squeeze(1)", "attended", ""),
    ("decode_attention", "logarithms.reshape(q.shape[:2])", "logarithms", ""),
    ("extend_attention", "q.shape[1],\n", "'TND',\n", "Expected a value of type 'int'"),
    ("extend_attention", "list(accumulate(packed.new))", "q", "actual_seq_qlen"),
    ("extend_attention", "peaks, sums, *_ =", "peaks, sums =", "too many values to unpack"),
]
#: Ops that call their operator in another file.
WRITTEN_IN = {"rotary_embedding": "rotation", "mrope": "rotation"}


@pytest.fixture(scope="module")
def told(wheel, tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """What is said of each of the wrong calls, in a copy of the package of its own."""
    words = []
    for op, right, wrong, _ in WRONG:
        folder = tmp_path_factory.mktemp(op)
        copy = folder / PACKAGE.name
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        kernel = copy / "vendor" / f"{WRITTEN_IN.get(op, op)}.py"
        assert right in kernel.read_text()
        kernel.write_text(kernel.read_text().replace(right, wrong))
        words.append(f"{op}={folder}")
    return meta_calls(wheel, *words)


@pytest.mark.parametrize("number", range(len(WRONG)), ids=[f"{op}-{wrong}" for op, _, wrong, _ in WRONG])
def test_a_wrong_call_is_told(told, number: int):
    assert told[number]
    assert WRONG[number][3] in "\n".join(told[number])
