"""Speculation with a draft model on the simulated MLU: tokens are those of transformers."""

import pytest

from sglang_fl.sglang_adapter.releases import SPECULATION
from sglang_fl.sglang_adapter.seams import installed_version
from tests.engine.drafted import Target
from tests.engine.drafting_models import make_eagle

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        installed_version() not in SPECULATION, reason="no speculation whose kernels we replace"
    ),
]


def test_a_draft_model_speculates_on_the_chip(simulating, tmp_path):
    log, target = tmp_path / "dispatch.log", Target(tmp_path, make_eagle(tmp_path))
    engine = {
        "speculative_algorithm": "EAGLE",
        "speculative_draft_model_path": str(tmp_path / "draft"),
        "speculative_num_steps": 3,
        "speculative_eagle_topk": 1,
        "speculative_num_draft_tokens": 4,
    }
    accepted = target.speculate(engine, simulating("mlu", {"SGLANG_FL_DISPATCH_LOG": str(log)}), tmp_path)
    assert min(accepted.values()) >= 3.5
    ran = set(log.read_text().splitlines())
    assert "[OOT-DISPATCH] RMSNorm → vendor(vendor.mlu)" in ran
    # Prompts run on the library; the check of drafts has a mask, which it does not take.
    attention = {line.split()[-1] for line in ran if "AttentionKernels.extend" in line}
    assert attention == {"vendor(vendor.mlu)", "reference(reference)"}
    assert "[OOT-DISPATCH] AttentionKernels.decode → vendor(vendor.mlu)" in ran
