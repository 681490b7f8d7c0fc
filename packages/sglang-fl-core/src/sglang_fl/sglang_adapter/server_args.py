"""Launch flags of older SGLang releases, accepted where a newer one no longer knows them."""

import argparse
import logging
from collections.abc import Sequence
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_fl.sglang_adapter.former_flags import FLAG, TODAY, VALUE

__all__ = ["accept_former_flags"]

logger = logging.getLogger(__name__)


class _FormerFlag(argparse.Action):
    """Stores what today's flag would, and says so once."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        logger.warning("%s is gone from this SGLang; taken as %s %s", FLAG, TODAY, VALUE)
        setattr(namespace, self.dest, VALUE)


def _add_former_flags(result: None, parser: argparse.ArgumentParser) -> None:
    known = parser._option_string_actions
    if FLAG not in known and TODAY in known:
        parser.add_argument(
            FLAG,
            action=_FormerFlag,
            nargs=0,
            dest=known[TODAY].dest,
            default=argparse.SUPPRESS,  # else it would compete with the default of today's flag
            help=f"Deprecated alias of {TODAY} {VALUE}.",
        )


def accept_former_flags() -> None:
    """Have SGLang's argument parser accept ``--disable-piecewise-cuda-graph`` on every release."""
    HookRegistry.register("sglang.srt.server_args.ServerArgs.add_cli_args", _add_former_flags, HookType.AFTER)
