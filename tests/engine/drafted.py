"""A target model whose engine speculates, and the judge: transformers with the same weights."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.engine.words import FIRST_WORD, VOCABULARY
from tests.programs import finish, server_for

__all__ = ["Target"]

SPECULATE = Path(__file__).parent / "speculate.py"
#: Log-probabilities in nats, of float32.
LIMIT = 1e-3


@dataclass(frozen=True)
class Target:
    """A target model.

    Parameters
    ----------
    folder : with its checkpoint in ``target``
    model : as transformers runs it
    """

    folder: Path
    model: Any

    def check(self, prompt: list[int], answer: dict[str, Any], is_drawn: bool) -> None:
        """Read a prompt and its answer as one text: each token of the answer is the most probable one.

        Of tokens that were drawn SGLang gives other log-probabilities, by their temperature.
        """
        tokens = answer["tokens"]
        with torch.no_grad():
            logits = self.model(torch.tensor([prompt + tokens]), use_cache=False).logits[0]
        expected = logits.double().log_softmax(-1)[len(prompt) - 1 : -1]
        assert tokens == expected.argmax(-1).tolist()
        if not is_drawn:
            found = torch.tensor(answer["logprobs"], dtype=torch.float64)
            assert (found - expected.amax(-1)).abs().max() < LIMIT

    def speculate(
        self, engine: Mapping[str, Any], environment: Mapping[str, str], folder: Path
    ) -> dict[str, float]:
        """Ask an engine, and check each answer.

        Parameters
        ----------
        engine : arguments of ``sgl.Engine`` beside the model
        environment : of its process
        folder : for the questions

        Returns
        -------
        dict of float : how many tokens a step has come to, by what was asked (``speculate.py``)
        """
        questions = folder / "questions.json"
        whole = {"model_path": str(self.folder / "target"), **engine}
        questions.write_text(json.dumps({"engine": whole, "prompts": prompts()}))
        command = [sys.executable, str(SPECULATE), str(questions)]
        done = finish(command, environment, 240, server_for(environment))
        assert done.code == 0, done.output[-3000:]
        accepted = {}
        for name, answers in done.result.items():
            for prompt, answer in zip(prompts(), answers, strict=True):
                self.check(prompt, answer, name == "drawn")
            accepted[name] = sum(answer["accepted"] for answer in answers) / len(answers)
        return accepted


def prompts() -> list[list[int]]:
    """Return texts that repeat themselves, and one that does not."""
    generator = torch.Generator().manual_seed(1)
    lengths, repeats = (6, 3, 40), (4, 5, 1)
    drawn = (torch.randint(FIRST_WORD, VOCABULARY, (n,), generator=generator).tolist() for n in lengths)
    return [text * count for text, count in zip(drawn, repeats, strict=True)]
