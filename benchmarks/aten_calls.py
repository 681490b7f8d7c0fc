"""Which ATen ops a served model calls in a decode step: inside of its CUDA graphs, and beside them.

    python -m benchmarks.aten_calls [--model Qwen2.5-0.5B] [--csv FILE]

An op inside of a graph costs its kernel; one beside it costs its host time in every step as well. SGLang's
profiler counts the calls of an engine without plugins, once with CUDA graphs, where only those beside the
graphs are seen, and once without. Two layers, one request.
"""

import argparse
import gzip
import json
import os
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.about import about
from benchmarks.bench_engine import GPU, SIDES
from benchmarks.engine_models import CONFIGS
from benchmarks.tables import write_table

STEPS = 32
LAYERS = 2


def calls_of_a_step(folder: Path, arguments: dict) -> Counter[str]:
    """Return how often each op is called on the host in a decode step, averaged; names without overloads."""
    import sglang

    def decode() -> None:
        sampling = {"temperature": 0, "max_new_tokens": STEPS + 1, "ignore_eos": True}
        engine.generate(input_ids=[list(range(3, 67))], sampling_params=sampling)

    engine = sglang.Engine(model_path=str(folder), load_format="dummy", **arguments)
    decode()
    traces = folder / "traces"
    engine.start_profile(output_dir=str(traces), activities=["CPU"], with_stack=False, record_shapes=False)
    decode()
    engine.stop_profile()
    engine.shutdown()
    (trace,) = traces.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    trace.unlink()
    names = (event["name"] for event in events if event.get("cat") == "cpu_op")
    counts = Counter(name.removeprefix("aten::") for name in names if name.startswith("aten::"))
    # Those of the prefill and of one request's end are less than half a call a step.
    return Counter({name: round(count / STEPS) for name, count in counts.items() if count >= STEPS / 2})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="Qwen2.5-0.5B", choices=CONFIGS)
    parser.add_argument("--arguments", default=json.dumps(GPU), help="of the engine, as JSON")
    parser.add_argument("--csv", type=Path, help="write the table there too")
    options = parser.parse_args()
    os.environ |= SIDES["vanilla"]
    arguments = json.loads(options.arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(
            json.dumps(CONFIGS[options.model] | {"num_hidden_layers": LAYERS})
        )
        beside = calls_of_a_step(folder, arguments)
        everywhere = calls_of_a_step(folder, arguments | {"disable_cuda_graph": True})
    rows = [[op, everywhere[op] - beside[op], beside[op]] for op in sorted(everywhere | beside)]
    head = ["op", "calls inside of graphs", "calls beside them"]
    for row in [head, *rows]:
        print(*row, sep="  ", flush=True)
    if options.csv:
        write_table(options.csv, about(options.model), head, rows)


if __name__ == "__main__":
    main()
