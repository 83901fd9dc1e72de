"""Which tools' files can be read."""

from __future__ import annotations

from collections.abc import Callable

from perfsuite.interop import aiperf, guidellm, inferencex, locust, mlperf, pytest_benchmark, vllm_bench
from perfsuite.interop.imported import Parsed, Translation

# Name on the command line -> reader of a file's text; each raises KeyError, TypeError or ValueError for another file.
IMPORTERS: dict[str, Callable[[str], Parsed]] = {
    "vllm-bench": vllm_bench.read_vllm_bench,
    "aiperf": aiperf.read_aiperf,
    "guidellm": guidellm.read_guidellm,
    "inferencex": inferencex.read_inferencex,
    "mlperf": mlperf.read_mlperf,
    "locust": locust.read_locust,
    "pytest-benchmark": pytest_benchmark.read_pytest_benchmark,
}

# The same names -> quantity as the tool calls it -> how it is read.
TRANSLATIONS: dict[str, dict[str, Translation]] = {
    "vllm-bench": vllm_bench.TRANSLATIONS,
    "aiperf": aiperf.TRANSLATIONS,
    "guidellm": guidellm.TRANSLATIONS,
    "inferencex": inferencex.TRANSLATIONS,
    "mlperf": mlperf.TRANSLATIONS,
    "locust": locust.TRANSLATIONS,
    "pytest-benchmark": pytest_benchmark.TRANSLATIONS,
}
