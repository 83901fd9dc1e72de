"""Tensors in each number format, and the values that they stand for. FP8: e4m3, one scale for each row. NVFP4: e2m1 in
blocks of 16, a scale of e4m3 for each block and one of fp32 for the tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.operators.shapes import Operator

BLOCK = 16
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FP8, FP8_MAX, E2M1_MAX = torch.float8_e4m3fn, 448.0, 6.0
FORMATS = ("fp32", "bf16", "fp8", "nvfp4")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def unsupported(operator: Operator, number_format: str, device: str) -> str | None:
    """Why this device does not compute the operator in the format; None = it does."""
    if operator.kind == "all_reduce":
        return None if number_format == "bf16" else "hidden states are reduced in BF16"
    if number_format == "fp32":
        return None if device == "cpu" else "FP32 is for the harness on a CPU"
    if number_format == "bf16":
        return None
    if operator.kind == "attention_decode":
        return f"PyTorch has no attention over a cache in {number_format}"
    if device == "cpu":
        no_units = "no tensor cores on a CPU"
        return no_units if number_format == "nvfp4" or operator.kind == "grouped_gemm" else None
    have = torch.cuda.get_device_capability()
    if number_format == "fp8":
        return None if have >= (8, 9) else f"FP8 needs compute capability 8.9, this GPU has {have[0]}.{have[1]}"
    if have < (10, 0):
        return f"NVFP4 needs compute capability 10.0, this GPU has {have[0]}.{have[1]}"
    return "PyTorch has no grouped GEMM in NVFP4" if operator.kind == "grouped_gemm" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """Rows of k values in a format. `values` float64: what they stand for; data, scale: as the kernel takes them.

    scale  fp8: (rows, 1) fp32; nvfp4: (rows, k / 16) e4m3; None for the others
    """

    data: torch.Tensor
    scale: torch.Tensor | None
    tensor_scale: torch.Tensor | None = None


def quantize(x: torch.Tensor, number_format: str) -> Quantized:
    """x, shape (…, rows, k) fp32, in a format."""
    if number_format in DTYPES:
        return Quantized(data=x.to(DTYPES[number_format]), scale=None)
    if number_format == "fp8":
        scale = (x.abs().amax(-1, keepdim=True) / FP8_MAX).clamp(min=1e-12)
        return Quantized(data=(x / scale).to(FP8), scale=scale)
    return _nvfp4(x)


def dequantize(q: Quantized) -> torch.Tensor:
    """The values that it stands for, float64."""
    if q.scale is None:
        return q.data.double()
    if q.tensor_scale is None:
        return q.data.float().double() * q.scale.double()
    codes = q.data.view(torch.uint8)
    pairs = torch.stack((codes & 0xF, codes >> 4), dim=-1).flatten(-2)
    values = torch.tensor([*E2M1, *(-v for v in E2M1)], dtype=torch.float64, device=codes.device)[pairs.long()]
    return values * q.scale.float().double().repeat_interleave(BLOCK, dim=-1) * q.tensor_scale.double()


def _nvfp4(x: torch.Tensor) -> Quantized:
    """Scales so that the largest value of a block is 6 and the largest scale 448; values to the nearest of E2M1."""
    blocks = x.unflatten(-1, (-1, BLOCK))
    largest = blocks.abs().amax(-1)
    tensor_scale = (largest.amax() / (E2M1_MAX * FP8_MAX)).clamp(min=1e-12)
    scale = (largest / E2M1_MAX / tensor_scale).clamp(min=2.0**-9, max=FP8_MAX).to(FP8)
    scaled = blocks / (scale.float() * tensor_scale).unsqueeze(-1)
    levels = torch.tensor(E2M1, device=x.device)
    edges = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(scaled.abs().contiguous(), edges).to(torch.uint8) | ((scaled < 0).to(torch.uint8) << 3)
    codes = codes.flatten(-2)
    return Quantized(data=(codes[..., 1::2] << 4) | codes[..., ::2], scale=scale, tensor_scale=tensor_scale)


def swizzled(scale: torch.Tensor) -> torch.Tensor:
    """Block scales (rows, blocks) in the order that the tensor cores read: tiles of 128 × 4, each as 32 × 4 × 4."""
    rows, blocks = scale.shape
    padded = scale.new_zeros((-(-rows // 128) * 128, -(-blocks // 4) * 4))
    padded[:rows, :blocks] = scale
    tiles = padded.view(padded.shape[0] // 128, 128, padded.shape[1] // 4, 4).permute(0, 2, 1, 3)
    return tiles.reshape(-1, 4, 32, 4).transpose(1, 2).reshape(-1)


def matmul(a: Quantized, w: Quantized) -> torch.Tensor:
    """a · wᵀ: rows (m, k) with weights (n, k); BF16 out, of fp32 fp32."""
    if a.scale is None or w.scale is None:
        return a.data @ w.data.t()
    if a.tensor_scale is None or w.tensor_scale is None:
        return torch._scaled_mm(a.data, w.data.t(), a.scale, w.scale.t(), out_dtype=torch.bfloat16)
    return _nvfp4_matmul(a, w)


def _nvfp4_matmul(a: Quantized, w: Quantized) -> torch.Tensor:
    functional: Any = torch.nn.functional
    recipe = [functional.ScalingType.BlockWise1x16, functional.ScalingType.TensorWise]
    order = [functional.SwizzleType.SWIZZLE_32_4_4, functional.SwizzleType.NO_SWIZZLE]
    packed = torch.float4_e2m1fn_x2
    product: torch.Tensor = functional.scaled_mm(
        a.data.view(packed), w.data.view(packed).t(),
        scale_a=[a.scale, a.tensor_scale], scale_recipe_a=recipe, swizzle_a=order,
        scale_b=[w.scale, w.tensor_scale], scale_recipe_b=recipe, swizzle_b=order, output_dtype=torch.bfloat16,
    )  # fmt: skip
    return product


def grouped_matmul(a: Quantized, w: Quantized, ends: torch.Tensor) -> torch.Tensor:
    """Rows (m, k), sorted by group, with the weights (g, n, k) of their group; ends: of each group's rows, int32."""
    if a.scale is None or w.scale is None:
        return torch.nn.functional.grouped_mm(a.data, w.data.transpose(1, 2), offs=ends)
    return torch._scaled_grouped_mm(
        a.data, w.data.transpose(1, 2), a.scale[:, 0], w.scale[..., 0], offs=ends, out_dtype=torch.bfloat16
    )  # fmt: skip
