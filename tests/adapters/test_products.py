"""The way of multiplying matrices: the fastest that is as exact as the default, and never on CUDA's account."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from onceclip.adapters import ClipAdapter, cpu


@pytest.fixture(autouse=True)
def probed_anew() -> Iterator[None]:
    """Every test probes for itself; afterwards the process multiplies as before."""
    for cached in (cpu._fastest, cpu._exact):
        cached.cache_clear()
    yield
    for cached in (cpu._fastest, cpu._exact):
        cached.cache_clear()
    cpu.fast_products()


def error_of_products() -> float:
    generator = torch.Generator().manual_seed(3)
    left, right = torch.randn(200, 512, generator=generator), torch.randn(512, 300, generator=generator)
    exact = left.double() @ right.double()
    return ((left @ right).double() - exact).norm().item() / exact.norm().item()


def test_products_stay_as_exact_as_float32_whatever_is_chosen() -> None:
    with cpu.products(cpu.fast_products()):
        assert error_of_products() < 2e-6  # bfloat16 would be at 2e-3, TF32 at 3e-4


def test_the_choice_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = cpu.fast_products()
    monkeypatch.setattr(cpu, "_faster", lambda: pytest.fail("probed twice"))
    assert cpu.fast_products() == first


def test_what_another_process_chose_is_taken_only_where_it_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    first = cpu.fast_products()
    for exact, taken in ((True, "onednn"), (False, "default")):
        monkeypatch.setattr(cpu, "_exact", lambda exact=exact: exact)
        with cpu.decided("onednn"):
            assert cpu.fast_products() == taken
            with cpu.decided("default"):
                assert cpu.fast_products() == "default"
            assert cpu.fast_products() == taken
    assert cpu.fast_products() == first


def test_blocks_of_code_leave_the_way_to_multiply_as_it_was() -> None:
    """Else what a process computed before would show in the last bits of what it computes after."""
    switch = cpu._setting()
    before = switch.fp32_precision
    with cpu.products("onednn"):
        inner = switch.fp32_precision
        with cpu.products("default"):
            assert switch.fp32_precision == before != inner
        assert switch.fp32_precision == inner
        with pytest.raises(ZeroDivisionError), cpu.products("default"):
            raise ZeroDivisionError
        assert switch.fp32_precision == inner
    assert switch.fp32_precision == before


def test_threads_that_end_one_after_the_other_do_not_change_each_others_products() -> None:
    switch, first, second = cpu._setting(), cpu.products("onednn"), cpu.products("onednn")
    first.__enter__()
    inner = switch.fp32_precision
    second.__enter__()
    first.__exit__(None, None, None)
    assert switch.fp32_precision == inner
    second.__exit__(None, None, None)
    assert switch.fp32_precision != inner


def test_fitting_leaves_the_way_to_multiply_alone(make_task: Callable[..., Any]) -> None:
    before = cpu._setting().fp32_precision
    ClipAdapter(epochs=2).fit(make_task((40, 40, 40), dim=64))
    assert cpu._setting().fp32_precision == before


@pytest.mark.parametrize(("seconds", "noise", "chosen"), [
    ({"default": 2.0, "onednn": 1.0}, 0.0, "onednn"),
    ({"default": 1.0, "onednn": 2.0}, 0.0, "default"),
    ({"default": 1.0, "onednn": 0.97}, 0.0, "default"),
    ({"default": 2.0, "onednn": 1.0}, 1e-3, "default"),
], ids=["faster", "slower", "hardly faster", "faster and rounded to bfloat16"])
def test_a_faster_way_is_taken_only_if_it_does_not_round(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float],
                                                        noise: float, chosen: str) -> None:
    """On Intel's AMX the same switch multiplies in bfloat16; timings and errors are made up, the decision is real."""
    clock, way, measured = [0.0], [""], cpu._relative_error
    monkeypatch.setattr(cpu, "set_products", lambda name: way.__setitem__(0, name))

    def tick() -> float:
        clock[0] += seconds[way[0]] / 2
        return clock[0]

    monkeypatch.setattr(cpu.time, "perf_counter", tick)
    monkeypatch.setattr(cpu, "_relative_error",
                        lambda *pair: measured(*pair) + (noise if way[0] == "onednn" else 0.0))
    assert cpu.fast_products() == chosen


@pytest.mark.parametrize(("ratio", "dtype"), [(0.5, torch.bfloat16), (1.0, None), (8.0, None)])
def test_a_search_is_narrow_only_where_that_is_faster(monkeypatch: pytest.MonkeyPatch, ratio: float,
                                                      caplog: pytest.LogCaptureFixture,
                                                      dtype: torch.dtype | None) -> None:
    """Without instructions for it, bfloat16 takes many times as long as float32."""
    monkeypatch.setattr(cpu, "_time_ratio", lambda *_: ratio)
    for each in (cpu._fastest, cpu.fast_bfloat16, cpu.narrow_dtype):
        each.cache_clear()
    try:
        assert (cpu.narrow_dtype("cpu"), cpu.narrow_dtype("cpu")) == (dtype, dtype)
        assert len(caplog.messages) == (dtype is None)
        assert cpu.narrow_dtype("cuda") == torch.bfloat16
    finally:
        for each in (cpu._fastest, cpu.fast_bfloat16, cpu.narrow_dtype):
            each.cache_clear()


def test_an_older_torch_with_cuda_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """There one switch serves all devices, and would lower precision on CUDA."""
    monkeypatch.setattr(cpu, "_setting", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda name: pytest.fail(f"set {name}"))
    assert cpu.fast_products() == "default"


def test_cudas_own_precision_is_never_touched(process: Callable[..., Any]) -> None:
    code = ("import torch; before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cuda.matmul.allow_tf32;"
            "from onceclip.adapters.cpu import fast_products; fast_products();"
            "assert (torch.backends.cuda.matmul.fp32_precision, torch.backends.cuda.matmul.allow_tf32) == before")
    done = process("-c", code)
    assert done.returncode == 0, done.stderr
