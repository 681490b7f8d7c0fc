"""One engine is bisected once for each planted fault: ``python bisect_faults.py FOLDER FAULTS ARGUMENT...``.

``FAULTS`` are separated by commas, the arguments are of the launch line. The report of the first
that is found stays in the folder. Prints one line ``RESULT {...}``: the verdict of each.
"""

import json
import os
import random
import sys
from dataclasses import replace
from pathlib import Path


def main() -> None:
    """Start the engine, plant, bisect."""
    folder, faults, *launch = sys.argv[1:]
    answers = Path(folder, "answers")
    answers.mkdir(parents=True)
    os.environ["SGLANG_FL_BISECT"] = str(answers)
    from sglang_fl.bisect.bench import METHOD
    from sglang_fl.bisect.procedure import Bisection
    from sglang_fl.bisect.reproduction import with_page, write_report
    from sglang_fl.bisect.steps import Steps
    from sglang_fl.sglang_adapter.offline import offline_engine
    from sglang_fl.startup import configure

    device = configure().registry.vendor.device_type
    draw = random.Random(0)
    prompts = [[draw.randrange(512) for _ in range(length)] for length in (5, 17, 33)]
    verdicts = {}
    with offline_engine(launch, answers) as engine:
        for fault in faults.split(","):
            planted = [Path(os.environ["FAULTS_FOLDER"], name) for name in fault.split(" and ")]
            for path in planted:
                path.touch()
            steps = Steps(lambda step: print(step, flush=True), lambda step: None)
            verdict = Bisection(engine, METHOD, prompts, steps).run()
            if verdict.culprits and not any(v["culprits"] for v in verdicts.values()):
                write_report(replace(verdict, folder=str(answers)), answers, device)
                with_page(verdict, answers, "MODEL")
                for path in answers.iterdir():
                    path.rename(Path(folder, path.name))
            for path in planted:
                path.unlink()
            verdicts[fault] = verdict.as_json()
    print("RESULT " + json.dumps(verdicts))


if __name__ == "__main__":
    main()
