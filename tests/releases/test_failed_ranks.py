"""What a command does when a process of SGLang fails rests on this code of every supported release."""

import pytest

from tests.releases.sources import RELEASES, body

pytestmark = pytest.mark.timeout(300)

PREMISES = {
    "sglang.srt.entrypoints.engine._set_envs_and_config": [
        "custom_sigquit_handler is None:",
        ".custom_sigquit_handler)",
    ],
    "sglang.srt.managers.tokenizer_manager.TokenizerManager.auto_create_handle_loop": [
        "signal_handler = self.signal_handler_class(self)\n",
        "signal.SIGQUIT, signal_handler.running_phase_sigquit_handler",
    ],
}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("target", PREMISES)
def test_sglang_lets_the_handler_of_failed_processes_be_replaced(target: str, release: str):
    text = body(release, target)
    assert text is not None
    assert [premise for premise in PREMISES[target] if premise not in text] == []
