"""Layer 1 in a process that runs the model: registered once, after its weights are loaded."""

import logging

from sglang_fl.aten.plan import Plan, load_kernels, make_plan
from sglang_fl.aten.record_log import Recording
from sglang_fl.aten.switchboard import AtenSwitchboard
from sglang_fl.errors import SettingsError
from sglang_fl.settings import Settings
from sglang_fl.vendor import AtenKernel, Vendor

__all__ = ["Layer1", "registered_layer_1"]

logger = logging.getLogger(__name__)

_here: "list[Layer1]" = []


def registered_layer_1() -> "Layer1 | None":
    """Return layer 1 of this process; None before it is registered, and where it never is."""
    return _here[0] if _here else None


class Layer1:
    """Replaces the ATen ops of a plan.

    Parameters
    ----------
    settings : the effective settings
    vendor : the chosen vendor
    plan : what was decided from the names of its ops, without importing a kernel
    record : gets each call, or None
    """

    def __init__(
        self, settings: Settings, vendor: Vendor, plan: Plan, record: Recording | None = None
    ) -> None:
        self._settings = settings
        self._vendor = vendor
        self._record = record
        self.plan = plan
        self.switchboard: AtenSwitchboard | None = None

    def register(self) -> None:
        """Import the vendor's kernels and let them run the ops of the plan; the first call alone counts.

        A kernel library that cannot be imported is a warning where nobody asked for layer 1 by name.

        Raises
        ------
        SettingsError : a name in the user's lists that the kernels themselves do not have
        Exception : what the library raised, if the user has set ``USE_FLAGGEMS`` or ``SGLANG_FL_STRICT``
        """
        if registered_layer_1() is not None:
            return
        _here.append(self)
        if not self.plan.replaced:
            logger.info("layer 1: no ATen op is replaced (`sglang-fl ops --aten` says why)")
            return
        try:
            kernels = self._load()
        except SettingsError:
            raise
        except Exception as error:
            if self._settings.strict or self._settings.is_users("use_flaggems"):
                raise
            logger.warning("layer 1 stays off: %s: %s", type(error).__name__, error)
            return
        self._switch_on(kernels)

    def _load(self) -> tuple[AtenKernel, ...]:
        kernels = load_kernels(self._vendor)
        # The kernels themselves are the last word on their names.
        self.plan = make_plan(self._settings, self._vendor, kernels)
        return kernels

    def _switch_on(self, kernels: tuple[AtenKernel, ...]) -> None:
        self.switchboard = AtenSwitchboard(kernels, self._vendor.device_type, self._record)
        refused = self.switchboard.switch_on(op.exact for op in self.plan.replaced)
        for overload, reason in refused.items():
            logger.warning("aten::%s stays PyTorch's or another library's: %s", overload, reason)
        on = self.switchboard.is_on
        logger.info(
            "layer 1: %d of %d ATen ops run on %s's kernels (`sglang-fl ops --aten` says why not the rest)",
            *(len(on), len(kernels), self._vendor),
        )
        logger.debug("layer 1 replaces: %s", ", ".join(on))
