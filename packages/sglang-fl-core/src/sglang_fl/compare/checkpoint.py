"""A checkpoint as Hugging Face transformers runs it, in float32: the side that no server stands behind.

Each sequence is read alone and without a cached prefix, whatever the question's class: all classes must agree
with that. A sequence is read once, and the same numbers are given when it is asked for again.
"""

from pathlib import Path
from typing import Any

from sglang_fl.compare.answers import Answer, Top
from sglang_fl.compare.client import TOP, About
from sglang_fl.compare.questions import Question
from sglang_fl.errors import SettingsError, quoted
from sglang_fl.logs.json_text import read_json

__all__ = ["Checkpoint"]


class Checkpoint:
    """The side of ``--model``.

    Parameters
    ----------
    folder : of the checkpoint
    device : PyTorch's name of the device that computes it

    Raises
    ------
    SettingsError : transformers is not installed; it cannot load the folder; there is no such device
    """

    def __init__(self, folder: Path, device: str) -> None:
        self._architecture = _architecture(folder)
        try:
            import torch
            import transformers
        except ImportError as error:
            raise SettingsError(f"--model needs transformers: {error}. It comes with SGLang") from error
        self._torch = torch
        self._title, self._version = str(folder), transformers.__version__
        try:
            self._device = torch.device(device)
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True
            )
            self._model = model.to(self._device).eval()
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            reason = " ".join(str(error).split())
            text = f"--model {quoted(str(folder))} --device {quoted(device)}: transformers cannot load it"
            raise SettingsError(f"{text}: {reason}") from None
        self._read: dict[tuple[tuple[int, ...], int], Answer] = {}

    def about(self) -> About:
        """Return what this side is."""
        return About(
            title=self._title,
            model=self._title,
            architecture=self._architecture,
            software=f"transformers {self._version} on {self._device}",
            dtype="float32",
        )

    def tokens_of(self, text: str) -> tuple[int, ...]:
        """Return a text's tokens, by the checkpoint's tokenizer."""
        return tuple(self._tokenizer(text)["input_ids"])

    def ask(self, question: Question) -> tuple[Answer, ...]:
        """Return an answer for each sequence of a question."""
        return tuple(self._answer(text, question.start, question.steps) for text in question.sequences)

    def _answer(self, text: tuple[int, ...], start: int, steps: int) -> Answer:
        if (text, steps) not in self._read:
            with self._torch.inference_mode():
                self._read[text, steps] = self._compute(text, steps)
        whole = self._read[text, steps]
        return Answer(whole.given[start:], whole.given_tops[start:], whole.tokens, whole.tops)

    def _compute(self, text: tuple[int, ...], steps: int) -> Answer:
        out = self._pass(text, None)
        expected = out.logits[0].double().log_softmax(-1)
        following = self._torch.tensor(text[1:], device=self._device, dtype=self._torch.long)
        given = expected[:-1].gather(-1, following[:, None])[:, 0].tolist()
        tops = [_top(row) for row in expected[:-1]]
        tokens: list[int] = []
        generated: list[Top] = []
        last = expected[-1]
        for step in range(steps):
            generated.append(_top(last))
            tokens.append(int(last.argmax()))
            if step + 1 < steps:
                out = self._pass((tokens[-1],), out.past_key_values)
                last = out.logits[0, -1].double().log_softmax(-1)
        return Answer(tuple(given), tuple(tops), tuple(tokens), tuple(generated))

    def _pass(self, text: tuple[int, ...], past: Any) -> Any:
        ids = self._torch.tensor([text], device=self._device)
        return self._model(input_ids=ids, past_key_values=past, use_cache=True)


def _architecture(folder: Path) -> str:
    """Return the type of a checkpoint's model, before PyTorch is imported.

    Raises
    ------
    SettingsError : there is no such folder, or it holds no checkpoint
    """
    remedy = "Name the folder of a checkpoint."
    if not folder.is_dir():
        raise SettingsError(f"--model {quoted(str(folder))}: there is no such folder. {remedy}")
    try:
        config = read_json(folder / "config.json")
    except ValueError as error:
        raise SettingsError(f"--model {quoted(str(folder))}: config.json: {error}. {remedy}") from None
    try:
        return str(config["model_type"])
    except (KeyError, TypeError):
        reason = "its config.json names no model_type"
    raise SettingsError(f"--model {quoted(str(folder))}: {reason}. {remedy}")


def _top(row: Any) -> Top:
    best = row.topk(min(TOP, row.numel()))
    return dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
