"""Each switch on the real engine, by its dispatch log. Engines start slowly, so each shows several switches.

The model is a Qwen3: it has norms of query and key, past which SGLang has a shortcut.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from sglang.srt.models import utils

from tests.engine.fake_vendor import install_vendor
from tests.engine.models import BY_NAME, make_model
from tests.programs import Run

pytestmark = pytest.mark.timeout(300)

TOY = Path(__file__).parent / "toy_vendor.py"
NORM, ROPE, SILU = "RMSNorm", "RotaryEmbedding", "SiluAndMul"


@pytest.fixture(scope="module")
def generate(run_offline, tmp_path_factory) -> Callable[..., tuple[Run, list[str]]]:
    """Return a function that generates under given settings; it returns the run and the dispatch log."""
    folder = tmp_path_factory.mktemp("switches")
    package = install_vendor(folder / "package", "toy", TOY.read_text())
    model = folder / "model"
    make_model(BY_NAME["Qwen3"], model)

    def run(settings: dict[str, str], log: Path | None = None, **engine: object) -> tuple[Run, list[str]]:
        path = log or folder / "dispatch.log"
        path.write_text("")
        given = {} if log else {"SGLANG_FL_DISPATCH_LOG": str(path)}
        done = run_offline({"PYTHONPATH": str(package), **given, **settings}, model=model, **engine)
        return done, path.read_text().splitlines()

    return run


def told(lines: list[str]) -> dict[str, set[str]]:
    """Return what ran each layer class but attention, which is SGLang's."""
    ran: dict[str, set[str]] = {}
    for line in lines:
        layer_class, _, what = line.removeprefix("[OOT-DISPATCH] ").partition(" → ")
        ran.setdefault(layer_class, set()).add(what)
    attention = {"sglang(torch_native)"}
    assert ran.pop("RadixAttention", attention) == attention  # unless a kernel before it has failed
    return ran


def served(run: Run) -> None:
    assert run.code == 0, run.output[-3000:]


def test_flagos_is_preferred_and_a_shortcut_that_nobody_excluded_is_taken_and_told(generate):
    run, lines = generate({"TOY_FUSES": "1"})
    served(run)
    # To 0.5.19 SGLang has that kernel on CUDA alone; tests/releases takes the shortcut there.
    fused = {"sglang(fused_qk_norm)"} if hasattr(utils, "can_use_fused_qk_norm_cpu") else set()
    assert told(lines) == {
        NORM: {"flagos(flagos)", *fused},
        ROPE: {"vendor(vendor.toy)"},  # the toy has no flagos kernel for it: the next kind
        SILU: {"flagos(flagos)"},
    }


def test_vendor_is_preferred_but_for_one_op_and_the_blacklist(generate):
    settings = {
        "SGLANG_FL_PREFER": "vendor",
        "SGLANG_FL_PER_OP": "silu_and_mul=reference",
        "SGLANG_FL_OOT_BLACKLIST": "RotaryEmbedding",
    }
    run, lines = generate(settings)
    served(run)
    assert told(lines) == {
        NORM: {"vendor(vendor.toy)"},
        ROPE: {"sglang(native)"},
        SILU: {"reference(reference)"},
    }


def test_an_op_that_the_whitelist_names_is_not_passed_over(generate):
    settings = {
        "SGLANG_FL_OOT_WHITELIST": "rms_norm,SiluAndMul",
        "SGLANG_FL_LOG_LEVEL": "INFO",
        "TOY_FUSES": "1",
    }
    run, lines = generate(settings)
    served(run)
    assert told(lines) == {NORM: {"flagos(flagos)"}, ROPE: {"sglang(native)"}, SILU: {"flagos(flagos)"}}
    (line,) = (line for line in run.output.splitlines() if "never run" in line)
    assert "SGLANG_FL_OOT_WHITELIST: SGLang's " in line
    assert "fused_qk_norm" in line


def test_a_denied_vendor_runs_nothing_of_its_own(generate):
    run, lines = generate({"SGLANG_FL_PREFER": "vendor", "SGLANG_FL_DENY_VENDORS": "toy"})
    served(run)
    assert told(lines) == {NORM: {"flagos(flagos)"}, ROPE: {"reference(reference)"}, SILU: {"flagos(flagos)"}}


def test_strict_ends_at_a_kernel_that_fails(generate):
    order = "rms_norm=impl:vendor.toy.burning|reference"
    run, lines = generate({"SGLANG_FL_PER_OP": order, "SGLANG_FL_STRICT": "1"})
    assert run.code != 0
    assert "RuntimeError: the chip has caught fire" in run.output
    assert "is replaced" not in run.output
    assert NORM not in told(lines)


def test_a_model_that_passes_over_a_named_op_is_refused_before_it_runs(run_offline, tmp_path: Path):
    make_model(BY_NAME["OLMo-2"], tmp_path / "model")
    run = run_offline({"SGLANG_FL_PER_OP": "rms_norm=reference"}, model=tmp_path / "model")
    assert run.code != 0
    (message,) = (line for line in run.output.splitlines() if line.startswith("sglang-fl: "))
    assert "SGLANG_FL_PER_OP names rms_norm, but Olmo2Attention of SGLang" in message
    assert "exit code: 2" in run.output


FILE = """
prefer: vendor
op_backends:
  silu_and_mul: [reference]
oot_blacklist: [rotary_embedding]
dispatch_log: {log}
"""


def test_the_environment_goes_before_the_file_and_the_file_before_the_defaults(generate, tmp_path: Path):
    file, log = tmp_path / "settings.yaml", tmp_path / "of-the-file.log"
    file.write_text(FILE.format(log=log))
    run, lines = generate({"SGLANG_FL_CONFIG": str(file), "SGLANG_FL_PREFER": "reference"}, log=log)
    served(run)
    assert told(lines) == {
        NORM: {"reference(reference)"},  # the file says vendor, the environment reference
        ROPE: {"sglang(native)"},
        SILU: {"reference(reference)"},
    }


def test_two_ranks_share_a_log_in_which_nothing_is_lost_or_torn(generate):
    settings = {"SGLANG_FL_ALLOW_VENDORS": "toy", "SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
    run, lines = generate(settings, tp_size=2)
    served(run)
    assert Counter(lines) == {
        f"[OOT-DISPATCH] {NORM} → flagos(flagos)": 2,
        "[OOT-DISPATCH] RadixAttention → sglang(torch_native)": 2,
        f"[OOT-DISPATCH] {ROPE} → vendor(vendor.toy)": 2,
        f"[OOT-DISPATCH] {SILU} → flagos(flagos)": 2,
    }
