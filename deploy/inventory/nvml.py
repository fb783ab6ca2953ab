"""NVIDIA's management library as the inventory asks it: the calls, and what no answer means."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Protocol, TypeVar, cast

from core.errors import BatonError

T = TypeVar("T")

MAX_NVLINKS = 36
"""Of one GPU, in NVML 13."""
FIELD_NVLINK_MB_PER_S = 90
"""NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON: of one active link, per direction, in 10⁶ bytes."""
P2P_READ, P2P_NVLINK = 0, 2
"""NVML_P2P_CAPS_INDEX_READ and _NVLINK."""
P2P_OK = 0
TO_SWITCH = 2
"""NVML_NVLINK_DEVICE_TYPE_SWITCH: the link's other end."""

NO_ANSWER = {
    2: "invalid argument",  # a link number beyond the GPU's last
    3: "not supported",
    4: "no permission",
    6: "not found",
    13: "function not found",  # a driver older than the call
    26: "deprecated",
}
"""Errors of a single call that say nothing about the GPU's health: what was asked stays unknown."""


class NvmlFailed(BatonError):
    """A GPU answered with an error that is more than "not supported": it may be lost."""

    status = "UNAVAILABLE"


class PciInfo(Protocol):
    """Of NVML's structure of this name."""

    busId: str


class MemoryInfo(Protocol):
    """The same; bytes."""

    total: int
    used: int


class Value(Protocol):
    """A union of C: which member counts depends on the field that was asked for."""

    uiVal: int


class FieldValue(Protocol):
    """One of several values that are asked for at once, each with a status of its own."""

    nvmlReturn: int
    value: Value


class Nvml(Protocol):
    """What of the module pynvml is used, under its own names. Handles are opaque."""

    @property
    def NVMLError(self) -> type[Exception]:
        """With the number of the error as `value`."""

    def nvmlInit(self) -> object: ...
    def nvmlShutdown(self) -> object: ...
    def nvmlSystemGetDriverVersion(self) -> str: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> object: ...
    def nvmlDeviceGetName(self, handle: object, /) -> str: ...
    def nvmlDeviceGetUUID(self, handle: object, /) -> str: ...
    def nvmlDeviceGetPciInfo(self, handle: object, /) -> PciInfo: ...
    def nvmlDeviceGetMemoryInfo(self, handle: object, /) -> MemoryInfo: ...
    def nvmlDeviceGetEnforcedPowerLimit(self, handle: object, /) -> int: ...
    def nvmlDeviceGetPowerUsage(self, handle: object, /) -> int: ...
    def nvmlDeviceGetCudaComputeCapability(self, handle: object, /) -> Sequence[int]: ...
    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: object, /) -> int: ...
    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: object, /) -> int: ...
    def nvmlDeviceGetEccMode(self, handle: object, /) -> Sequence[int]: ...
    def nvmlDeviceGetMigMode(self, handle: object, /) -> Sequence[int]: ...
    def nvmlDeviceGetNvLinkState(self, handle: object, link: int, /) -> int: ...
    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: object, link: int, /) -> int: ...
    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle: object, link: int, /) -> PciInfo: ...
    def nvmlDeviceGetFieldValues(
        self, handle: object, fields: list[int], /
    ) -> Sequence[FieldValue]: ...
    def nvmlDeviceGetTopologyCommonAncestor(self, first: object, second: object, /) -> int: ...
    def nvmlDeviceGetP2PStatus(self, first: object, second: object, index: int, /) -> int: ...


def load_nvml() -> Nvml | None:
    """pynvml, where it is installed; it loads the driver's library only when it is begun."""
    try:
        return cast("Nvml", import_module("pynvml"))
    except ModuleNotFoundError:
        return None


def why_not_begun(nvml: Nvml | None) -> str | None:
    """Begin; None, or one line on why that cannot be."""
    if nvml is None:
        return "pynvml is not installed: pip install nvidia-ml-py"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return f"no NVIDIA driver: {error}"
    return None


@contextmanager
def ended(nvml: Nvml) -> Iterator[None]:
    """Around everything that is asked once NVML has begun."""
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def asked(nvml: Nvml, call: Callable[..., T], *args: object) -> T | None:
    """One answer; None where the GPU or its driver does not have it. Raises NvmlFailed."""
    try:
        return call(*args)
    except nvml.NVMLError as error:
        if getattr(error, "value", None) in NO_ANSWER:
            return None
        raise NvmlFailed(f"{getattr(call, '__name__', call)}: {error}") from error
