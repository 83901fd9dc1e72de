"""The NVML source through the real pynvml and a real shared library: units, fall-backs, errors, lost GPUs."""

from __future__ import annotations

import ctypes.util
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from perfsuite.analysis.energy import energy_over
from perfsuite.analysis.gpu_samples import read_telemetry
from perfsuite.analysis.steady import Window
from perfsuite.telemetry import nvml as source_module
from perfsuite.telemetry.nvml_reading import REASONS
from perfsuite.telemetry.source import MARKS
from tests.made_run import S
from tests.nvml_stand_in.build import SCRIPT, build_stand_in, compiler, run_python

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler: install cc, or ziglang from PyPI")

READ = """
import ctypes, json, sys
from dataclasses import asdict
import pynvml
from perfsuite.telemetry.nvml import NvmlSource
from perfsuite.telemetry.source import SourceUnavailable
try:
    source = NvmlSource(pynvml)
except SourceUnavailable as error:
    print(json.dumps({"reason": error.reason}))
    sys.exit()
rounds = []
for t_s in json.loads(sys.argv[1]):
    pynvml.nvmlLib.nvmlStandInSetTime(ctypes.c_double(t_s))
    rounds.append([asdict(sample) for sample in source.read()])
facts = asdict(source.facts())
source.close()
print(json.dumps({"reason": None, "rounds": rounds, "facts": facts}))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_stand_in(tmp_path_factory.mktemp("nvml"))


VARIANTS = """
import ctypes, json, os, sys
import pynvml
from dataclasses import asdict
from perfsuite.telemetry.nvml import NvmlSource
base = open(os.environ["NVML_STAND_IN"]).read()
found = []
for more in json.loads(sys.argv[1]):
    open(os.environ["NVML_STAND_IN"], "w").write(base + more)
    source = NvmlSource(pynvml)
    pynvml.nvmlLib.nvmlStandInSetTime(ctypes.c_double(1.0))
    found.append([asdict(sample) for sample in source.read()[:2]])
    source.close()
print(json.dumps(found))
"""


def variants(library: Path, folder: Path, scripts: list[str]) -> list[list[dict[str, Any]]]:
    """The first two GPUs' samples a second after the start, for each of these ends of the script."""
    out = run_python(VARIANTS, library, SCRIPT + "stop_clock\n", folder, json.dumps(scripts))
    found: list[list[dict[str, Any]]] = json.loads(out)
    return found


def answer(library: Path, folder: Path, more: str = "", *, at_s: tuple[float, ...] = (1.0,)) -> dict[str, Any]:
    """What the source reads at these times of the stand-in whose script has `more` at its end."""
    out = run_python(READ, library, f"{SCRIPT}stop_clock\n{more}", folder, json.dumps(at_s))
    found: dict[str, Any] = json.loads(out)
    return found


def test_every_value_of_eight_gpus_comes_in_our_units(library: Path, tmp_path: Path) -> None:
    found = answer(library, tmp_path, at_s=(10.0,))
    assert [sample["gpu_uuid"] for sample in found["rounds"][0]] == [f"GPU-stand-in-{k:02d}" for k in range(8)]
    sample = found["rounds"][0][5]
    assert {name: sample[name] for name in sample if name not in ("t_ns", "read_ns")} == {
        "gpu": 5, "gpu_uuid": "GPU-stand-in-05", "power_w": 600.0, "power_average_w": 590.0, "power_limit_w": 1000.0,
        "energy_j": 6000.0, "memory_used_bytes": 150_000_000_000, "memory_reserved_bytes": 600_000_000,
        "memory_total_bytes": 192_000_000_000, "utilization_ratio": 0.93, "memory_utilization_ratio": 0.41,
        "sm_clock_mhz": 1830.0, "memory_clock_mhz": 3996.0, "temperature_c": 61.0, "memory_temperature_c": 70.0,
        "throttle_mask": 4, "power_cap_ns": 5_000_000, "sw_thermal_ns": 0, "hw_thermal_ns": 0, "power_brake_ns": 0,
        "pcie_tx_bytes": 1000, "pcie_rx_bytes": 2000, "nvlink_tx_bytes": 1800, "nvlink_rx_bytes": 3600,
        "ecc_corrected": 1, "ecc_uncorrected": 0, "process_ids": [4711], "process_memory_bytes": [149_000_000_000],
        "emulated": False, "error": None,
    }  # fmt: skip
    assert found["facts"]["gpus"][0] == {
        "gpu": 0, "gpu_uuid": "GPU-stand-in-00", "name": "Stand-in GPU", "driver_version": "999.01",
        "power_limit_w": 1000.0, "power_default_limit_w": 1000.0, "max_sm_clock_mhz": 1965.0, "is_mig": False,
        "error": None,
    }  # fmt: skip


def test_slow_values_are_read_of_all_gpus_first_and_then_in_turn(library: Path, tmp_path: Path) -> None:
    rounds = answer(library, tmp_path, at_s=tuple(k / 10 for k in range(11)))["rounds"]

    def told(name: str) -> list[list[int]]:
        return [[k for k, sample in enumerate(samples) if sample[name] is not None] for samples in rounds]

    assert told("pcie_tx_bytes") == [list(range(8)), [1], [2], [3], [4], [5], [6], [7], [], [], [0]]
    assert told("temperature_c")[:6] == [list(range(8)), [1, 6], [2, 7], [3], [4], [0, 5]]
    assert all(sample["energy_j"] is not None for samples in rounds for sample in samples)


ALWAYS = "0 1e9"
NO_COUNTER = f"fail * field:83 {ALWAYS} 3\nfail * TotalEnergyConsumption {ALWAYS} 3\n"

FALL_BACKS = {
    "no instant power": (
        f"fail * field:186 {ALWAYS} 3\n",
        {"power_w": 590.0, "power_average_w": 590.0, "error": "power_average"},
    ),
    "no field values": (
        f"fail * FieldValues {ALWAYS} 13\n",
        {"power_w": 590.0, "power_average_w": 590.0, "energy_j": 600.0, "pcie_tx_bytes": None},
    ),
    "memory of the first version": (
        f"fail * MemoryInfo_v2 {ALWAYS} 25\n",
        {"memory_used_bytes": 150_600_000_000, "memory_reserved_bytes": None, "error": "memory_v1"},
    ),
    "old temperature call": (f"fail * TemperatureV {ALWAYS} 13\n", {"temperature_c": 61.0, "error": None}),
    "power of the module": (
        f"fail * field:186 {ALWAYS} 3\nfail * field:185 {ALWAYS} 3\nfail * PowerUsage {ALWAYS} 3\n"
        "set * field:186:1 0 1900000\n",
        {"power_w": 1900.0, "power_average_w": None, "error": "power_module;power_average_w:nvml_not_supported"},
    ),
    "energy as a field": (
        NO_COUNTER,
        {"energy_j": 600.0, "error": None},
    ),
    "energy of the module": (
        f"{NO_COUNTER}fail * field:191 {ALWAYS} 3\nset * field:191:1 0 5000000\n",
        {"energy_j": 5000.0, "error": "energy_module"},
    ),
    "divided into instances": (
        f"set * mig 0 1\nfail * UtilizationRates {ALWAYS} 3\n",
        {"utilization_ratio": None, "error": "mig;utilization_ratio:nvml_not_supported"},
    ),
    "processes of others hidden": (
        f"fail * ComputeRunningProcesses {ALWAYS} 4\n",
        {"process_ids": None, "process_memory_bytes": None, "error": "process_ids:nvml_no_permission"},
    ),
    "memory of a process not told": ("set * process_4711 0 -1\n", {"process_memory_bytes": [None]}),
    "no processes": ("set * process_4711 0 0\n", {"process_ids": [], "process_memory_bytes": []}),
    "no links": ("set * num_links 0 0\n", {"nvlink_tx_bytes": None}),
    "a link that fails": (
        f"fail * field:202:7 {ALWAYS} 17\n",
        {"nvlink_tx_bytes": None, "nvlink_rx_bytes": 3600, "error": "nvlink_tx_bytes:nvml_operating_system"},
    ),
}


@pytest.fixture(scope="module")
def fall_backs(library: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The first GPU's sample of each of FALL_BACKS."""
    scripts = [script for script, _ in FALL_BACKS.values()]
    found = variants(library, tmp_path_factory.mktemp("fall_backs"), scripts)
    return {name: samples[0] for name, samples in zip(FALL_BACKS, found, strict=True)}


@pytest.mark.parametrize("name", FALL_BACKS)
def test_what_stands_in_for_a_missing_value_is_marked(fall_backs: dict[str, dict[str, Any]], name: str) -> None:
    wanted, sample = FALL_BACKS[name][1], fall_backs[name]
    assert {key: sample[key] for key in wanted} == wanted
    marks = [part for part in (sample["error"] or "").split(";") if part and ":" not in part]
    assert set(marks) <= set(MARKS)


def test_a_gpu_that_is_lost_is_one_reason_and_no_number_and_the_others_go_on(library: Path, tmp_path: Path) -> None:
    rounds = answer(library, tmp_path, "fail 3 * 2 4 15\n", at_s=(1.0, 2.5, 5.0))["rounds"]
    lost = rounds[1][3]
    assert lost["error"] == "gpu_lost"
    told = ("t_ns", "read_ns", "gpu", "gpu_uuid", "emulated", "error")
    assert all(value is None for name, value in lost.items() if name not in told)
    assert [sample["error"] for k, sample in enumerate(rounds[1]) if k != 3] == [None] * 7
    assert rounds[2][3]["error"] is None and rounds[2][3]["energy_j"] == 3000.0


# The fields that a call alone gives, when it fails with an error that has no other way around it.
FIELDS_OF = {
    "EnforcedPowerLimit": ("power_limit_w",),
    "UtilizationRates": ("utilization_ratio", "memory_utilization_ratio"),
    "ClockInfo": ("sm_clock_mhz", "memory_clock_mhz"),
    "ComputeRunningProcesses": ("process_ids", "process_memory_bytes"),
    "field:82": ("memory_temperature_c",),
    "field:74": ("power_cap_ns",),
    "field:4": ("ecc_uncorrected",),
    "field:198": ("pcie_rx_bytes",),
}


def test_every_error_of_every_call_ends_in_its_reason_and_leaves_the_other_values_as_they_are(
    library: Path, tmp_path: Path
) -> None:
    cases = [(call, code) for call in FIELDS_OF for code in [*REASONS, 999, 12345] if (call, code) != (
        "ComputeRunningProcesses", 7)]  # fmt: skip
    out = variants(library, tmp_path, [f"fail 0 {call} {ALWAYS} {code}\n" for call, code in cases])
    for (call, code), (sample, other) in zip(cases, out, strict=True):
        reason = REASONS.get(code, "nvml_unknown")
        fields = FIELDS_OF[call]
        assert [sample[field] for field in fields] == [None] * len(fields), (call, code)
        assert f"{fields[0]}:{reason}" in sample["error"].split(";")
        assert other["error"] is None
        rest = {k: v for k, v in sample.items() if k not in (*fields, "t_ns", "read_ns", "error", "gpu", "gpu_uuid")}
        assert rest == {name: other[name] for name in rest}


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (f"fail * Init {ALWAYS} 9\n", "nvml_driver_not_loaded"),
        (f"fail * Init {ALWAYS} 18\n", "nvml_driver_mismatch"),
        (f"fail * Init {ALWAYS} 12345\n", "nvml_unknown"),
        (f"fail * Count {ALWAYS} 4\n", "nvml_no_permission"),
        ("gpus 0\n", "gpu_not_found"),
    ],
)
def test_nvml_that_does_not_start_is_unavailable_with_a_reason(
    library: Path, tmp_path: Path, script: str, reason: str
) -> None:
    assert answer(library, tmp_path, script) == {"reason": reason}


def test_without_the_library_nvml_is_unavailable(tmp_path: Path) -> None:
    if ctypes.util.find_library("nvidia-ml") is not None:
        pytest.skip("this host has a driver")
    assert answer(tmp_path, tmp_path) == {"reason": "nvml_unavailable"}


def test_a_gpu_that_cannot_be_opened_is_a_row_with_the_reason(library: Path, tmp_path: Path) -> None:
    found = answer(library, tmp_path, f"fail 2 HandleByIndex {ALWAYS} 16\n")
    assert [sample["error"] for sample in found["rounds"][0]] == [None, None, "gpu_reset_required", *[None] * 5]
    assert found["rounds"][0][2]["power_w"] is None
    assert found["facts"]["gpus"][2]["error"] == "gpu_reset_required"


def test_the_periods_are_those_of_the_first_gpu_that_can_be_opened(library: Path, tmp_path: Path) -> None:
    code = (
        "import json, pynvml\n"
        "from perfsuite.telemetry.nvml import NvmlSource\n"
        "print(json.dumps(NvmlSource(pynvml).measure_periods(span_s=0.6)))\n"
    )
    one_lost = run_python(code, library, f"{SCRIPT}fail 0 HandleByIndex {ALWAYS} 15\n", tmp_path)
    assert json.loads(one_lost)["energy_j"] == pytest.approx(0.1, rel=0.3)
    assert json.loads(run_python(code, library, f"{SCRIPT}fail * HandleByIndex {ALWAYS} 15\n", tmp_path)) == {}


def test_field_ids_and_codes_are_those_of_the_installed_pynvml() -> None:
    import pynvml

    names = {
        "POWER_INSTANT": "POWER_INSTANT", "POWER_AVERAGE": "POWER_AVERAGE", "ENERGY": "ENERGY",
        "TOTAL_ENERGY": "TOTAL_ENERGY_CONSUMPTION",
        "MEMORY_TEMPERATURE": "MEMORY_TEMP", "ECC_CORRECTED": "ECC_SBE_VOL_TOTAL",
        "ECC_UNCORRECTED": "ECC_DBE_VOL_TOTAL", "POWER_CAP_NS": "CLOCKS_EVENT_REASON_SW_POWER_CAP",
        "SW_THERMAL_NS": "CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN",
        "HW_THERMAL_NS": "CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN",
        "POWER_BRAKE_NS": "CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN",
        "PCIE_TX": "PCIE_COUNT_TX_BYTES", "PCIE_RX": "PCIE_COUNT_RX_BYTES",
    }  # fmt: skip
    for ours, theirs in names.items():
        assert getattr(source_module, ours)[0] == getattr(pynvml, f"NVML_FI_DEV_{theirs}"), ours
    assert pynvml.NVML_FI_DEV_NVLINK_COUNT_XMIT_BYTES == source_module.NVLINK_TX
    assert pynvml.NVML_FI_DEV_NVLINK_COUNT_RCV_BYTES == source_module.NVLINK_RX
    assert pynvml.NVML_POWER_SCOPE_MODULE == source_module.SCOPE_MODULE
    codes = {value for name, value in vars(pynvml).items() if name.startswith("NVML_ERROR_")}
    assert REASONS.keys() <= codes


SAMPLE = """
import json, sys, time
from dataclasses import asdict
from pathlib import Path
from perfsuite.telemetry.sampler import start_sampler
if __name__ == "__main__":
    with start_sampler() as sampler:
        with sampler.sampling("nvml", Path(sys.argv[1]), 20.0):
            time.sleep(float(sys.argv[2]))
        print(json.dumps(asdict(sampler.status())))
"""


def sampled(library: Path, folder: Path, more: str, seconds: float) -> tuple[dict[str, Any], Any]:
    """The sampler's status and rows after so many seconds on the stand-in."""
    script = folder / "sample.py"
    script.write_text(SAMPLE)
    code = f"import subprocess, sys; subprocess.run([sys.executable, {str(script)!r}, *sys.argv[1:]], check=True)"
    path = folder / "rows.arrows"
    status = json.loads(run_python(code, library, SCRIPT + more, folder, str(path), str(seconds)))
    with pa.memory_map(str(path)) as file:
        return status, read_telemetry(pa.ipc.open_stream(file).read_all())


def test_the_sampler_measures_the_periods_and_the_energy_of_eight_slow_gpus(library: Path, tmp_path: Path) -> None:
    delays = "refresh 50\ndelay FieldValues 500\ndelay TotalEnergyConsumption 1000\n"
    status, samples = sampled(library, tmp_path, delays, 2.5)
    assert (status["reason"], status["num_gpus"]) == (None, 8)
    assert status["facts"]["periods_s"]["energy_j"] == pytest.approx(0.05, rel=0.5)
    assert status["temperature_c"] == 61.0
    assert status["cpu_s"] > 0 and status["lag_p99_s"] is not None
    window = Window(t0_ns=int(samples.t_ns[0]) + S // 2, t1_ns=int(samples.t_ns[-1]) - S // 4)
    found = energy_over(samples, window, num_gpus=8)
    assert found.energy_j is not None and found.bound_j is not None
    assert abs(found.energy_j - 8 * 600 * window.duration_s) <= found.bound_j
    assert found.energy_j == pytest.approx(8 * 600 * window.duration_s, rel=0.1)


def test_energy_of_a_gpu_lost_under_load_is_withheld_with_its_reason(library: Path, tmp_path: Path) -> None:
    # The clock of the stand-in starts a second before the first sample: the periods are measured first.
    _, samples = sampled(library, tmp_path, "fail 6 * 1.8 1e9 15\n", 1.5)
    window = Window(t0_ns=int(samples.t_ns[0]) + S // 4, t1_ns=int(samples.t_ns[-1]) - S // 10)
    found = energy_over(samples, window, num_gpus=8)
    assert (found.energy_j, found.reason) == (None, "gpu_lost")
