"""Build a model as one of SGLang's processes does that load no plugins, and call its first norm.

``python without_plugins.py ray|encoder MODEL``. Ray itself is not there: what its actor is, is a class.
"""

import os
import socket
import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch


def model_of_rays_actor(path: str) -> Any:
    """Return the model of a scheduler that Ray would run."""
    ray = MagicMock(remote=lambda cls: cls)
    ray.get_runtime_context = lambda: SimpleNamespace(get_accelerator_ids=dict)
    for name in ("ray", "ray.util", "ray.util.placement_group", "ray.util.scheduling_strategies"):
        sys.modules[name] = ray
    from sglang.srt.ray.scheduler_actor import SchedulerActor
    from sglang.srt.server_args import PortArgs, ServerArgs

    arguments = ServerArgs(path, device="cpu", skip_tokenizer_init=True, max_total_tokens=2048)
    actor = SchedulerActor(arguments, PortArgs.init_new(arguments), 0, 0, 0, None)
    return actor.scheduler.tp_worker.model_runner.model


def model_of_an_encoder(path: str) -> Any:
    """Return the model of a worker that encodes pictures only."""
    from sglang.srt.disaggregation.encoder.server import MMEncoder
    from sglang.srt.runtime_context import publish
    from sglang.srt.server_args import ServerArgs

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    arguments = ServerArgs(path, device="cpu", encoder_only=True)
    publish(arguments, role="encoder")
    return MMEncoder(arguments, dist_init_method=f"tcp://127.0.0.1:{port}").model


MODELS = {"ray": model_of_rays_actor, "encoder": model_of_an_encoder}


def main() -> None:
    """Build the model and call its first norm."""
    model = MODELS[sys.argv[1]](sys.argv[2])
    norm = next(layer for layer in model.modules() if type(layer).__name__ == "RMSNorm")
    norm(torch.ones_like(norm.weight).unsqueeze(0))
    sys.stdout.flush()
    os._exit(0)  # nobody has told its threads to end


if __name__ == "__main__":
    main()
