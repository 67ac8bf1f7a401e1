"""The number format "auto" is bfloat16 only where the machine computes with it."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the training stack: pip install '.[train]'")

from querylift.trainer.student.libraries import choose_device, choose_number_format


def test_a_number_format_that_is_given_stays() -> None:
    assert [choose_number_format(name) for name in ("float32", "bfloat16")] == ["float32", "bfloat16"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the flags of an x86 processor")
def test_auto_is_bfloat16_on_a_gpu_and_on_a_processor_with_its_instructions() -> None:
    flags = next(line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if "flags" in line)
    has_instructions = not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags.split())
    expected = "bfloat16" if choose_device() == "cuda" or has_instructions else "float32"
    assert choose_number_format("auto") == expected
