"""The number formats and the float64 check themselves, on the device at hand."""

from __future__ import annotations

import pytest
import torch

from benchmarks.operators.formats import E2M1, dequantize, quantize, swizzled
from benchmarks.operators.problems import TOLERANCES, num_sets, relative_error, route


def test_values_of_nvfp4_are_kept_exactly() -> None:
    levels = torch.tensor([*E2M1, *(-v for v in E2M1)]).repeat(2, 2)
    q = quantize(levels * 448.0, "nvfp4")
    assert q.data.dtype == torch.uint8 and q.data.shape == (2, 16) and q.scale is not None and q.scale.shape == (2, 2)
    assert torch.equal(dequantize(q), levels.double() * 448.0)


@pytest.mark.parametrize(("number_format", "bound"), [("fp32", 0.0), ("bf16", 2**-8), ("fp8", 2**-4), ("nvfp4", 0.12)])
def test_rounding_to_a_format_is_as_coarse_as_its_bits(number_format: str, bound: float) -> None:
    x = torch.randn((64, 256), generator=torch.Generator().manual_seed(1))
    error = relative_error(dequantize(quantize(x, number_format)), x.double())
    assert bound / 8 <= error <= bound


def test_block_scales_are_read_in_tiles_of_32_by_4_by_4() -> None:
    rows, blocks = 130, 6
    scale = torch.arange(rows * blocks, dtype=torch.float32).view(rows, blocks)
    found = swizzled(scale)
    assert len(found) == 256 * 8
    for row, block in ((0, 0), (31, 3), (32, 0), (127, 5), (129, 4)):
        tile, inside = (row // 128) * 2 + block // 4, row % 128
        assert found[tile * 512 + inside % 32 * 16 + inside // 32 * 4 + block % 4] == scale[row, block]


def test_a_wrong_product_is_beyond_the_tolerance() -> None:
    expected = torch.randn((8, 8), generator=torch.Generator().manual_seed(1)).double()
    assert relative_error(expected * 1.02, expected) > max(TOLERANCES.values())


def test_every_token_goes_to_its_number_of_experts() -> None:
    counts = route(100, 16, 4, torch.Generator().manual_seed(1))
    assert counts.shape == (16,) and int(counts.sum()) == 400 and int(counts.max()) <= 100


def test_input_sets_outgrow_the_cache() -> None:
    assert num_sets(10e6, 50 * 10**6) == 10
    assert (num_sets(1e9, 50 * 10**6), num_sets(1.0, 50 * 10**6)) == (2, 16)
