"""A test suite that holds a serving deployment to its limits. Run it: pytest examples/pytest_suite

With pytest-benchmark: --benchmark-json=out.json, --benchmark-autosave, --benchmark-compare, --benchmark-histogram.
"""

from pathlib import Path

SCENARIO = Path(__file__).parent / "scenario.yaml"


def test_nvfp4_answers_in_time_and_no_slower_than_fp8(perfsuite_benchmark):
    result = perfsuite_benchmark(SCENARIO, arm="nvfp4", metric="ttft_p50_s")
    result.assert_slo(ttft_p50="500ms", tpot_p50="50ms")
    result.assert_no_regression(baseline="fp8", margin=0.05, metrics=["tpot_p50"])


def test_fp8_holds_a_throughput_at_a_load_point_of_its_own(perfsuite_benchmark):
    load = {"offline": True, "requests": 24}
    result = perfsuite_benchmark(SCENARIO, arm="fp8", metric="output_tps_run", load=load)
    result.assert_slo(output_tps_run=10.0)
