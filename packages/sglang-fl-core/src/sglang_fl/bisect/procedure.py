"""The steps of a bisection, each of which rules something out before the next is believed.

1. The same batch twice: is the model deterministic?
2. SGLang's attention, whichever backend runs it, against float64: the baseline itself may be wrong.
3. Armed, with everything off: is it still bit for bit what SGLang computes? Else the plugin is to blame.
4. A mistake planted on purpose must be seen, or nothing can be decided here.
5. Everything on: do the numbers differ by more than rounding makes them?
6. If so, the smallest set of ops that makes them. It is left out, and the question asked again.
7. Each call of each op against float64: where, how far, with which inputs.

The signal is the log-probability of recorded tokens, position by position, in nats.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from sglang_fl.bisect.delta import smallest_failing
from sglang_fl.bisect.readings import Distance, Reading, distance, reading
from sglang_fl.bisect.steps import Asks, Steps
from sglang_fl.bisect.verdict import ATTENTION, Culprit, Outcome, Verdict

__all__ = ["Bisection", "Engine"]

#: Tokens that the baseline generates and all passes are forced along, and steps that each pass decodes.
RECORDED, DECODED = 16, 4
#: How many times what the references, each result rounded otherwise, make of the same model counts as
#: rounding: another draw of the roundings may make more of it.
ROUNDING = 1.5
#: How many times the difference of two equal passes counts as noise.
NOISE = 4.0
#: Nats below which nothing is concluded: logits of 10 to 100 in float32 round by as much.
LEAST = 3e-5


class Engine(Protocol):
    """An engine with switches, ``sglang_adapter.offline.OfflineEngine``."""

    def generate(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, *, logprobs: bool
    ) -> list[dict[str, Any]]:
        """Run one batch."""

    def call(self, method: str, step: str, **parameters: Any) -> None:
        """Have every rank carry out a step."""

    def answers(self, name: str) -> list[Any]:
        """Return what each rank has answered."""


class Bisection:
    """Runs the steps on one engine.

    Parameters
    ----------
    engine : with graphs and prefix cache off
    method : under which ranks can be called
    prompts : tokens
    steps : of which each pass becomes one
    """

    def __init__(
        self,
        engine: Engine,
        method: str,
        prompts: Sequence[Sequence[int]],
        steps: Steps,
    ) -> None:
        self._engine = engine
        self._method = method
        self._prompts = prompts
        self._steps = steps
        self._begun = time.perf_counter()
        self._passes = 0
        self._numbers: dict[str, float] = {}
        self._baseline: Reading
        self._sequences: list[list[int]] = []
        self._layer_2: dict[str, list[str]] = {}
        self._layer_1: list[str] = []
        self._attention: list[Culprit] = []
        self._called: set[str] = set()
        self._limits: dict[str, str] = {}

    def run(self) -> Verdict:
        """Carry out the steps until one decides."""
        for step in (self._null_test, self._positive_control):
            verdict = step()
            if verdict is not None:
                return verdict
        verdict = self._search()
        self._switch(())
        return verdict

    def _read(self) -> Reading:
        self._passes += 1
        return reading(self._engine.generate(self._sequences, DECODED, logprobs=True))

    def _do(self, step: str, **parameters: Any) -> None:
        self._engine.call(self._method, step, **parameters)

    def _switch(self, units: Sequence[str]) -> None:
        layer_2, layer_1 = self._split(units)
        self._do("switch", layer_2=layer_2, layer_1=layer_1)

    def _split(self, units: Sequence[str]) -> tuple[list[str], list[str]]:
        aten = [unit.removeprefix("aten::") for unit in units if unit.startswith("aten::")]
        return [unit for unit in units if not unit.startswith("aten::")], aten

    @property
    def _units(self) -> tuple[str, ...]:
        return (*self._layer_2, *(f"aten::{overload}" for overload in self._layer_1))

    def _look(self, asks: Asks, what: str, on: Sequence[str] = (), layers: Sequence[str] = ()) -> Distance:
        """Make one pass with this on, as a step; return how far it is from the baseline."""
        with self._steps.step(asks, what, on, layers) as step:
            found = distance(self._read(), self._baseline)
            step.found(found, agrees=not self._deviates(found))
        return found

    def _null_test(self) -> Verdict | None:
        with self._steps.step(Asks.TWICE, "the same batch twice") as step:
            recorded = self._engine.generate(self._prompts, RECORDED, logprobs=False)
            self._sequences = [
                [*prompt, *row["output_ids"]] for prompt, row in zip(self._prompts, recorded, strict=True)
            ]
            self._baseline = self._read()
            noise = distance(self._read(), self._baseline)
            self._numbers["noise"] = noise.largest
            step.found(noise, agrees=noise.is_zero)
        self._look_at_attention()
        self._do("arm")
        for units in self._engine.answers("units"):  # the stages of a pipeline have different layers
            self._layer_1 = units["layer_1"]
            self._limits |= {f"aten::{name}": reason for name, reason in units["refused"].items()}
            for op, layers in units["layer_2"].items():
                known = self._layer_2.setdefault(op, [])
                known += [layer for layer in layers if layer not in known]
        found = self._with_everything_off(noise)
        if found is not None:
            return self._verdict(
                Outcome.FOUND, f"the plugin itself: with everything off the model differs ({found})"
            )
        if not self._units:
            return self._verdict(
                Outcome.CANNOT_DECIDE, "there is nothing to switch: no op runs on our kernels"
            )
        return None

    def _with_everything_off(self, noise: Distance) -> Distance | None:
        """Return how far from SGLang's numbers the model is with everything off; None where that is noise."""
        what = f"{len(self._layer_2)} fused ops and {len(self._layer_1)} ATen ops, all off"
        with self._steps.step(Asks.OFF, what) as step:
            off = distance(self._read(), self._baseline)
            differs = self._is_more_than_noise(off, noise) and self._is_more_than_noise(
                distance(self._read(), self._baseline), distance(self._read(), self._read())
            )
            step.found(off, agrees=not differs)
        return off if differs else None

    def _look_at_attention(self) -> None:
        """Hold the calls of SGLang's attention layer against float64."""
        with self._steps.step(Asks.ATTENTION, "SGLang's attention against float64") as step:
            self._do("watch_attention")
            self._read()
            self._do("tell_attention")
            answers = self._engine.answers("attention")
            found = [
                (rank, _of_attention(said)) for rank, a in enumerate(answers) for said in a["violations"]
            ]
            for answer in answers:
                self._limits |= answer["unchecked"]
            self._attention = [_of_ranks(found, len(answers))] if found else []
            wrong = f"{found[0][1].where} is wrong" if found else "no call of it is wrong"
            step.told(wrong, agrees=not found)

    def _is_more_than_noise(self, found: Distance, noise: Distance) -> bool:
        return found.largest > NOISE * noise.largest or (noise.is_zero and not found.is_zero)

    def _positive_control(self) -> Verdict | None:
        with self._steps.step(Asks.REFERENCES, "references, each result rounded otherwise") as step:
            self._do("use_references")
            references = distance(self._read(), self._baseline)
            self._numbers["references"] = references.largest
            least = max(ROUNDING * references.largest, NOISE * self._numbers["noise"], LEAST)
            self._numbers["threshold"] = least
            step.found(references, agrees=None)
            step.told(f"{references}; so the threshold is {least:.3g}")
        self._switch(())
        with self._steps.step(Asks.PLANTED, "a planted mistake") as step:
            self._do("plant")
            if self._engine.answers("planted")[0] is None:
                self._limits["what these prompts cannot show"] = "no fused layer to plant a mistake in"
                step.told("no fused layer to plant it in; the control is left out")
                return None
            control = distance(self._read(), self._baseline)
            self._numbers["planted mistake"] = control.largest
            is_seen = self._deviates(control)
            step.found(control, agrees=not is_seen)
        self._switch(())
        if not is_seen:
            summary = f"a mistake planted on purpose is not seen ({control}): use other prompts"
            return self._verdict(Outcome.CANNOT_DECIDE, summary)
        return None

    def _deviates(self, found: Distance) -> bool:
        threshold = self._numbers["threshold"]
        return found.largest > threshold or any(margin > threshold for _, _, margin in found.flips)

    def _fails(self, units: Sequence[str]) -> bool:
        self._switch(units)
        return self._deviates(self._look(Asks.SOME, f"{_named_or_counted(units, 'ops')} on", units))

    def _search(self) -> Verdict:
        """Take the smallest guilty sets out, one after the other, until the rest holds."""
        left, culprits, said = self._units, [], []
        while left and self._everything_fails(left):
            guilty = smallest_failing(left, self._fails)
            culprits += self._described(guilty)
            said.append(" and ".join(guilty) + (" together; each alone does not" if guilty[1:] else ""))
            left = tuple(unit for unit in left if unit not in guilty)
        quiet = self._watch(left) if left else []
        if quiet:
            names = ", ".join(culprit.name for culprit in quiet)
            said.append(f"calls of {names} are wrong by themselves, although the model's numbers hold")
        if not said:
            return self._verdict(Outcome.NOTHING_FOUND, "no op makes the model differ by more than rounding")
        return self._verdict(Outcome.FOUND, "; ".join(said), [*culprits, *quiet])

    def _everything_fails(self, left: Sequence[str]) -> bool:
        self._switch(left)
        rest = "everything" if len(left) == len(self._units) else "everything else"
        found = self._look(Asks.EVERYTHING, f"{rest} on", left)
        self._numbers.setdefault("everything on", found.largest)
        return self._deviates(found)

    def _described(self, guilty: Sequence[str]) -> list[Culprit]:
        """Describe units without which the model's numbers would hold, by their first wrong call if any."""
        found = {culprit.name: culprit for culprit in self._watch(guilty)}
        return [found.get(unit) or self._by_deviation(unit, alone=len(guilty) == 1) for unit in guilty]

    def _by_deviation(self, unit: str, *, alone: bool) -> Culprit:
        """Describe a unit none of whose calls is wrong by itself."""
        where = ""
        layers = self._layer_2.get(unit, [])
        if alone and len(layers) > 1:
            where = smallest_failing(layers, lambda names: self._layers_fail(unit, names))[0]
        return Culprit(*_named(unit), where=where, what="the model's numbers differ while it is on")

    def _layers_fail(self, op: str, layers: Sequence[str]) -> bool:
        self._do("switch", layer_2=[op], layer_1=[], layers=list(layers))
        where = _named_or_counted(layers, "layers")
        return self._deviates(self._look(Asks.LAYERS, f"{op} on in {where} alone", (op,), layers))

    def _watch(self, units: Sequence[str]) -> list[Culprit]:
        """Hold each call of these units against float64; return those with a wrong call.

        One layer after the other: what a check computes must not run on the kernels of the other.
        """
        layer_2, layer_1 = self._split(units)
        found: dict[str, list[tuple[int, Culprit]]] = {}
        for fused, aten in ((layer_2, []), ([], layer_1)):
            if not fused and not aten:
                continue
            on = [unit for unit in units if unit.startswith("aten::") == bool(aten)]
            what = f"calls of {_named_or_counted(on, 'ops')} against float64"
            with self._steps.step(Asks.CALLS, what, on) as step:
                self._do("watch", layer_2=fused, layer_1=aten)
                self._read()
                self._do("findings", layer_1=aten)
                answers = self._engine.answers("findings")
                for rank, answer in enumerate(answers):
                    self._called |= {*answer["called"]}
                    self._limits |= answer["unchecked"]
                    for culprit in _culprits(answer):
                        found.setdefault(culprit.name, []).append((rank, culprit))
                wrong = [unit for unit in on if unit in found]
                step.told(f"wrong: {', '.join(wrong)}" if wrong else "none is wrong", agrees=not wrong)
        return [_of_ranks(found[unit], len(answers)) for unit in units if unit in found]

    def _verdict(self, outcome: Outcome, summary: str, culprits: Sequence[Culprit] = ()) -> Verdict:
        if self._attention:
            outcome, culprits = Outcome.FOUND, (*self._attention, *culprits)
            by = self._attention[0]
            summary = f"attention is wrong by itself, in SGLang too: {by.implementation}; {summary}"
        seconds = round(time.perf_counter() - self._begun, 1)
        numbers = {**self._numbers, "passes": self._passes, "seconds": seconds}
        limits = tuple(f"{unit} is not judged: {reason}" for unit, reason in self._limits.items())
        uncalled = tuple(f"aten::{name}" for name in self._layer_1 if name not in self._called)
        return Verdict(outcome, summary, tuple(culprits), numbers, limits, uncalled, tuple(self._steps))


def _named(unit: str) -> tuple[int, str]:
    return (1 if unit.startswith("aten::") else 2), unit


def _culprits(answer: dict[str, Any]) -> list[Culprit]:
    """Return what one rank has found, each op once."""
    violations = [_of_violation(said, answer["implementations"]) for said in answer["violations"]]
    return violations + [_of_fault(said) for said in answer["faults"]]


def _of_ranks(found: Sequence[tuple[int, Culprit]], ranks: int) -> Culprit:
    """Return what the first rank has found, and on which ranks it is so if not on all."""
    culprit = found[0][1]
    return culprit if len(found) == ranks else replace(culprit, ranks=", ".join(str(r) for r, _ in found))


def _of_violation(said: dict[str, Any], implementations: dict[str, dict[str, str]]) -> Culprit:
    ran = implementations.get(said["op"], {})
    return Culprit(
        layer=2,
        name=said["op"],
        implementation=f"{ran.get('kind', '')}({ran.get('id', '')}) {ran.get('target', '')}",
        where=said["layer"],
        what=said["text"].partition(": ")[2],
        dtype=said["dtype"],
        shapes=_shapes(said),
        exclude=f"SGLANG_FL_PER_OP={said['op']}=reference",
        inputs=said["inputs"],
    )


def _shapes(said: dict[str, Any]) -> str:
    return ", ".join(f"{name} {tuple(shape)}" for name, shape in said["shapes"].items())


def _of_attention(said: dict[str, Any]) -> Culprit:
    return Culprit(
        layer=2,
        name=ATTENTION,
        implementation=f"sglang({said['backend']})",
        where=said["layer"],
        what=said["text"].partition(": ")[2],
        dtype=said["dtype"],
        shapes=_shapes(said),
        exclude="another --attention-backend",
        inputs=said["inputs"],
    )


def _of_fault(said: dict[str, Any]) -> Culprit:
    name = f"aten::{said['overload']}"
    return Culprit(
        layer=1,
        name=name,
        implementation="layer 1",
        where=said["where"],
        what=said["text"].partition(": ")[2],
        dtype=said["dtype"],
        shapes=", ".join(str(tuple(shape)) for shape in said["shapes"]),
        exclude=f"SGLANG_FL_FLAGOS_BLACKLIST={name}",
        inputs=said["inputs"],
    )


def _named_or_counted(names: Sequence[str], what: str) -> str:
    return ", ".join(names) if len(names) < 4 else f"{len(names)} {what}"
