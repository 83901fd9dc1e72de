"""One reading of one GPU through NVML: which calls there are for a value, and what went wrong with them.

The one place where NVML's return codes are translated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

# NVML's return codes (nvml.h, nvmlReturn_t) as the reason codes of samples and of the sampler's status.
REASONS: dict[int, str] = {
    1: "nvml_uninitialized",
    2: "nvml_invalid_argument",
    3: "nvml_not_supported",
    4: "nvml_no_permission",
    6: "nvml_not_found",
    7: "nvml_insufficient_size",
    8: "nvml_insufficient_power",
    9: "nvml_driver_not_loaded",
    10: "nvml_timeout",
    11: "nvml_irq_issue",
    12: "nvml_unavailable",
    13: "nvml_function_not_found",
    14: "nvml_corrupted_inforom",
    15: "gpu_lost",
    16: "gpu_reset_required",
    17: "nvml_operating_system",
    18: "nvml_driver_mismatch",
    19: "nvml_in_use",
    20: "nvml_memory",
    21: "nvml_no_data",
    23: "nvml_insufficient_resources",
    25: "nvml_version_mismatch",
    26: "nvml_deprecated",
    27: "nvml_not_ready",
    28: "gpu_not_found",
    29: "nvml_invalid_state",
}

# What a GPU answers once it answers always: such a call is not made again.
_FOR_GOOD = frozenset({"nvml_not_supported", "nvml_function_not_found", "nvml_version_mismatch", "nvml_deprecated"})

# Members of the union in nvmlFieldValue_t by its valueType (nvml.h, nvmlValueType_t).
_VALUE_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")

_get = object.__getattribute__  # pynvml's structures have a slow one of their own, for texts

Field = tuple[int, int]  # field id, scope id: a power scope, or the number of a link
T = TypeVar("T")


class FieldFailed(Exception):
    """One field of a field-values call failed. `value` is its return code."""

    def __init__(self, value: int) -> None:
        super().__init__(REASONS.get(value, "nvml_unknown"))
        self.value = value


def reason_of(error: Exception) -> str:
    """The reason code of an NVML error; a function that this library does not have counts as not found."""
    if isinstance(error, AttributeError):
        return "nvml_function_not_found"
    return REASONS.get(int(getattr(error, "value", 999)), "nvml_unknown")


class FieldValues:
    """Several field values by one call. Each keeps its own return code; when the call fails, all have the call's."""

    def __init__(self, nvml: Any, handle: Any, fields: Sequence[Field], errors: tuple[type[Exception], ...]) -> None:
        self._fields = fields
        self._found: dict[Field, Any] = {}
        self._failed: Exception | None = None
        try:
            values = nvml.nvmlDeviceGetFieldValues(handle, list(fields))
            self._found = dict(zip(fields, values, strict=True))
        except errors as error:
            self._failed = error

    def numbers(self) -> list[float] | None:
        """All values in the order in which they were asked for; None when one of them failed."""
        if self._failed is not None:
            return None
        try:
            return [float(self._value(field)) for field in self._fields]
        except FieldFailed:
            return None

    def number(self, field: Field) -> float:
        """The value as it stands. Raises what the call raised, else FieldFailed by the field's own code."""
        return float(self._value(field))

    def count(self, field: Field) -> int:
        """The value of a counter, exact beyond 2^53. Raises like number()."""
        return int(self._value(field))

    def _value(self, field: Field) -> Any:
        if self._failed is not None:
            raise self._failed
        value = self._found[field]
        code, kind = _get(value, "nvmlReturn"), _get(value, "valueType")
        if code != 0:
            raise FieldFailed(code)
        if not 0 <= kind < len(_VALUE_MEMBERS):
            raise FieldFailed(25)
        return getattr(_get(value, "value"), _VALUE_MEMBERS[kind])


class Reading:
    """The fields of one sample, and what went wrong with them. never: of this GPU, filled and kept between readings."""

    def __init__(self, never: dict[str, str], errors: tuple[type[Exception], ...]) -> None:
        self._never = never
        self._errors = errors
        self._num_read = 0
        self._marks: list[str] = []
        self._failed: dict[str, str] = {}

    def mark(self, mark: str) -> None:
        """Say of the sample what is no failure."""
        self._marks.append(mark)

    def took(self, num: int) -> None:
        """Say that so many values were read without get() or first()."""
        self._num_read += num

    def get(self, field: str, call: Callable[[], T]) -> T | None:
        """The result of a call, or None with the reason kept under the field's name."""
        return self.first(field, (None, call))

    def first(self, field: str, *ways: tuple[str | None, Callable[[], T]]) -> T | None:
        """The result of the first (mark, call) that works; the mark tells which it was. None when all fail."""
        codes = []
        for number, (mark, call) in enumerate(ways):
            key = f"{field} {number}"
            if key in self._never:
                codes.append(self._never[key])
                continue
            try:
                value = call()
            except self._errors as error:
                codes.append(reason_of(error))
                if codes[-1] in _FOR_GOOD:
                    self._never[key] = codes[-1]
                continue
            self._marks += [mark] if mark else []
            self._num_read += 1
            return value
        self._failed[field] = codes[0]
        return None

    def error(self) -> str | None:
        """The sample's `error`: marks, then FIELD:CODE; one code alone when nothing was read, for one passing cause."""
        codes = set(self._failed.values())
        passing = codes - _FOR_GOOD or codes
        if not self._num_read and len(passing) == 1:
            return passing.pop()
        return _joined([*self._marks, *(f"{field}:{code}" for field, code in self._failed.items())])


def _joined(parts: Iterable[str]) -> str | None:
    return ";".join(parts) or None


def total(values: FieldValues, fields: Sequence[Field]) -> int:
    """Sum of counters. Raises when one of them cannot be read, or there is none."""
    if not fields:
        raise FieldFailed(3)
    return sum(values.count(field) for field in fields)


def mean_changes_s(times_ns: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Mean time between the instants of each name, in seconds; names with fewer than three are left out."""
    return {
        name: (times[-1] - times[0]) / 1e9 / (len(times) - 1) for name, times in times_ns.items() if len(times) >= 3
    }
