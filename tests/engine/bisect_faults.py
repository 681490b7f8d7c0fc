"""One engine is bisected once for each planted fault: ``python bisect_faults.py MODEL FOLDER FAULT...``.

Prints one line ``RESULT {...}``: the verdict of each.
"""

import json
import os
import random
import sys
from dataclasses import replace
from pathlib import Path

LAUNCH = (
    *("--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
    *("--grammar-backend", "none", "--skip-tokenizer-init", "--max-total-tokens", "2048"),
    *("--dtype", "float32", "--log-level", "error"),
)


def main() -> None:
    """Start the engine, plant, bisect."""
    model, folder, *faults = sys.argv[1:]
    answers = Path(folder, "answers")
    answers.mkdir(parents=True)
    os.environ["SGLANG_FL_BISECT"] = str(answers)
    from sglang_fl.bisect.bench import METHOD
    from sglang_fl.bisect.procedure import Bisection
    from sglang_fl.bisect.reproduction import write_report
    from sglang_fl.sglang_adapter.offline import offline_engine

    draw = random.Random(0)
    prompts = [[draw.randrange(512) for _ in range(length)] for length in (5, 17, 33)]
    verdicts = {}
    with offline_engine(["--model-path", model, *LAUNCH], answers) as engine:
        for fault in faults:
            planted = [Path(os.environ["FAULTS_FOLDER"], name) for name in fault.split(" and ")]
            for path in planted:
                path.touch()
            verdict = Bisection(engine, METHOD, prompts, lambda step: print(step, flush=True)).run()
            if fault == "fused":
                write_report(replace(verdict, folder=str(answers)), answers, "cpu")
                for path in answers.iterdir():
                    path.rename(Path(folder, path.name))
            for path in planted:
                path.unlink()
            verdicts[fault] = verdict.as_json()
    print("RESULT " + json.dumps(verdicts))


if __name__ == "__main__":
    main()
