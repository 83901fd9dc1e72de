"""The model library: every figure has a source, names resolve, and sizes agree with the shapes."""

from __future__ import annotations

import pytest

from perfsuite.analysis.roofline import weight_bytes_by_part
from perfsuite.analysis.weights import NOT_LOADED, active_fraction, part_parameters
from perfsuite.errors import PerfsuiteError, UsageError
from perfsuite.library import (
    PARTS,
    find_checkpoint,
    find_gpu,
    find_model,
    is_named,
    known_checkpoint,
    load_library,
    paired_checkpoints,
    partners,
)
from perfsuite.library.loader import SUPPORT_STATUSES, unwrap_figures

MODELS = ("deepseek-r1", "deepseek-v3.1", "deepseek-v3.2", "deepseek-v4-flash")


def test_every_name_of_a_model_or_checkpoint_is_found_without_reading_the_files_and_a_strange_one_is_not() -> None:
    library = load_library()
    for key, entry in (*library.models.items(), *library.checkpoints.items()):
        assert all(map(is_named, (key, key.upper(), *entry.aliases)))
    assert not is_named("meta-llama/Llama-3.1-8B-Instruct")


def test_every_figure_has_a_source_and_a_known_basis() -> None:
    figures = load_library().figures
    assert len(figures) > 200
    for path, figure in figures.items():
        assert figure.source, path
        assert figure.basis in ("stated", "computed", "inferred", "assumed"), path


def test_what_could_not_be_read_is_marked_as_inferred_or_assumed() -> None:
    figures = load_library().figures
    assert figures["checkpoints.nvidia/DeepSeek-V3.2-NVFP4.parts.attention_output"].basis == "inferred"
    assert figures["models.deepseek-v4-flash.kv_streams.csa.num_layers"].basis == "inferred"
    assert figures["gpus.b200.power_idle_w"].basis == "assumed"


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (7, "a bare number"),
        ({"value": 7}, "no source"),
        ({"value": 7, "source": "unknown"}, "a source that is not listed"),
        ({"value": 7, "source": "a", "basis": "guessed"}, "an unknown basis"),
        ({"value": 7, "source": "a", "unit": "m"}, "an unknown key"),
    ],
)
def test_a_figure_without_a_proper_source_is_refused(node: object, reason: str) -> None:
    with pytest.raises(PerfsuiteError) as caught:
        unwrap_figures({"x": node}, "top", {"a": "A"}, {})
    assert caught.value.where == "top.x", reason


@pytest.mark.parametrize("model", MODELS)
def test_each_model_has_an_original_and_an_nvfp4_checkpoint_that_pair(model: str) -> None:
    of_model = [c for c in load_library().checkpoints.values() if c.model == model]
    nvfp4 = [c for c in of_model if c.precision == "nvfp4"]
    assert nvfp4
    for checkpoint in nvfp4:
        assert checkpoint.baseline is not None
        original = find_checkpoint(checkpoint.baseline)
        assert original.model == model and original.precision != "nvfp4" and original.baseline is None
        assert checkpoint in paired_checkpoints(original.id)
        assert set(checkpoint.accuracy) <= set(original.accuracy)


def test_every_checkpoint_gives_a_format_for_every_part() -> None:
    for checkpoint in load_library().checkpoints.values():
        assert set(checkpoint.parts) == set(PARTS)


def test_r1_of_january_and_of_may_are_not_paired_with_each_other() -> None:
    assert find_checkpoint("nvidia/DeepSeek-R1-FP4").baseline == "deepseek-ai/DeepSeek-R1"
    assert find_checkpoint("nvidia/DeepSeek-R1-0528-FP4-V2").baseline == "deepseek-ai/DeepSeek-R1-0528"


@pytest.mark.parametrize(
    ("alias", "identity"),
    [
        ("deepseek-v3.2-nvfp4", "nvidia/DeepSeek-V3.2-NVFP4"),
        ("NVIDIA/deepseek-v3.1-fp4", "nvidia/DeepSeek-V3.1-NVFP4"),
        ("nvidia/DeepSeek-R1-NVFP4-v2", "nvidia/DeepSeek-R1-FP4-v2"),
        ("deepseek-v4-flash-fp8", "sgl-project/DeepSeek-V4-Flash-FP8"),
    ],
)
def test_aliases_find_the_checkpoint_in_any_case(alias: str, identity: str) -> None:
    assert find_checkpoint(alias).id == identity


def test_names_and_aliases_are_unique_within_a_kind() -> None:
    library = load_library()
    for entries in (library.checkpoints, library.models, library.gpus):
        names = [name.lower() for entry in entries.values() for name in (entry.id, *entry.aliases)]
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        ("nvidia/DeepSeek-V3.2-NVFP4", "nvidia/DeepSeek-V3.2-NVFP4"),
        ("/models/DeepSeek-V3.2-NVFP4/", "nvidia/DeepSeek-V3.2-NVFP4"),
        ("/hub/models--nvidia--DeepSeek-R1-FP4/snapshots/0a1b", "nvidia/DeepSeek-R1-FP4"),
        ("./DeepSeek-R1-0528-FP4-V2", "nvidia/DeepSeek-R1-0528-NVFP4-v2"),
        ("/models/tiny", None),
        ("someone/DeepSeek-V3.2-NVFP4", None),
        ("/", None),
    ],
)
def test_a_path_stands_for_the_repository_it_is_named_after(name: str, identity: str | None) -> None:
    found = known_checkpoint(name)
    assert (found.id if found else None) == identity


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("nvidia/DeepSeek-R1-FP4", ["deepseek-ai/DeepSeek-R1"]),
        ("nvidia/DeepSeek-V4-Flash-NVFP4", ["deepseek-ai/DeepSeek-V4-Flash", "sgl-project/DeepSeek-V4-Flash-FP8"]),
        ("deepseek-ai/DeepSeek-V4-Flash-Base", []),
    ],
)
def test_partners_are_of_one_origin_and_another_precision(name: str, others: list[str]) -> None:
    assert [checkpoint.id for checkpoint in partners(find_checkpoint(name))] == others


def test_every_checkpoint_says_of_every_engine_how_well_it_is_served() -> None:
    for checkpoint in load_library().checkpoints.values():
        assert set(checkpoint.engines) == {"vllm", "sglang", "trtllm"}
        for support in checkpoint.engines.values():
            assert support.status in SUPPORT_STATUSES
    assert find_checkpoint("deepseek-v3.2-nvfp4").engines["trtllm"].since == "1.2.0rc8"


def test_every_card_in_the_library_has_its_accuracy_on_both_sides() -> None:
    for name in ("deepseek-r1-nvfp4", "deepseek-v3.1-nvfp4", "deepseek-v3.2-nvfp4", "deepseek-v4-flash-nvfp4"):
        checkpoint = find_checkpoint(name)
        assert checkpoint.accuracy and checkpoint.accuracy.keys() == find_checkpoint(checkpoint.origin).accuracy.keys()


def test_hopper_has_no_fp4_tensor_cores() -> None:
    assert set(find_gpu("h200").peak_flops_per_s) == {"fp8", "bf16"}
    assert find_gpu("gb200").peak_flops_per_s["fp4"] == 10e15


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    with pytest.raises(UsageError) as caught:
        find_checkpoint("deepseek-v3.2-nvfp5")
    assert "did you mean nvidia/DeepSeek-V3.2-NVFP4" in str(caught.value)
    with pytest.raises(UsageError, match="no GPU"):
        find_gpu("z9")


@pytest.mark.parametrize(
    ("model", "total_b", "active_b"),
    [("deepseek-r1", 671.03, 37.55), ("deepseek-v3.1", 671.03, 37.55), ("deepseek-v4-flash", 284.0, 13.5)],
)
def test_parameters_from_the_shape_agree_with_the_published_count(model: str, total_b: float, active_b: float) -> None:
    shape = find_model(model)
    parts = {part: num for part, num in part_parameters(shape).items() if part not in NOT_LOADED}
    fractions = active_fraction(shape)
    total, active = sum(parts.values()), sum(num * fractions[part] for part, num in parts.items())
    assert total / 1e9 == pytest.approx(total_b, rel=1e-3)
    assert active / 1e9 == pytest.approx(active_b, rel=1e-2)
    assert total == pytest.approx(shape.num_parameters, rel=2e-3)


def test_the_parts_of_v3_are_as_counted_by_hand() -> None:
    parts = part_parameters(find_model("deepseek-v3.1"))
    assert parts["routed_experts"] / 1e9 == pytest.approx(653.91, abs=0.01)
    assert (parts["attention"] + parts["attention_output"]) / 1e9 == pytest.approx(11.41, abs=0.01)
    assert parts["dense_mlp"] / 1e9 == pytest.approx(1.19, abs=0.01)
    assert parts["shared_experts"] / 1e9 == pytest.approx(2.55, abs=0.01)
    assert parts["mtp"] / 1e9 == pytest.approx(11.6, abs=0.05)


def test_disk_sizes_agree_with_the_formats_of_the_parts() -> None:
    for checkpoint in load_library().checkpoints.values():
        computed = sum(weight_bytes_by_part(checkpoint).values())
        assert checkpoint.disk_bytes == pytest.approx(computed, rel=0.02), checkpoint.id


def test_v4_flash_native_is_labelled_as_mxfp4_and_smaller_than_nvfp4() -> None:
    native, nvfp4 = find_checkpoint("deepseek-ai/DeepSeek-V4-Flash"), find_checkpoint("deepseek-v4-flash-nvfp4")
    assert native.precision == "mxfp4" and native.note is not None
    assert native.disk_bytes < nvfp4.disk_bytes


def test_published_accuracy_is_as_on_the_cards() -> None:
    assert find_checkpoint("deepseek-v3.2-fp8").accuracy["MMLU-Pro"] == 80.2
    assert find_checkpoint("deepseek-v3.2-nvfp4").accuracy["MMLU-Pro"] == 79.9
    assert find_checkpoint("deepseek-r1-nvfp4").accuracy["MATH-500"] == 94.2


def test_b200_is_dense_and_eight_of_them_make_the_published_node() -> None:
    gpu = find_gpu("B200")
    assert 8 * gpu.hbm_bytes_per_s == 64e12
    assert {key: 8 * peak for key, peak in gpu.peak_flops_per_s.items()} == {"fp4": 72e15, "fp8": 36e15, "bf16": 18e15}
