"""Probe vectors: laws, and independence of count, dtype and global state."""

from __future__ import annotations

import pytest
import torch

from landscape.linalg.probes import gaussian, sphere

CPU = torch.device("cpu")
PROBES = pytest.mark.parametrize("draw", [gaussian, sphere])


def drawn(draw, n: int, count: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return draw(n, count, generator=torch.Generator().manual_seed(5), dtype=dtype, device=CPU)


@PROBES
def test_the_kth_probe_does_not_depend_on_the_count_or_dtype(draw) -> None:
    many = drawn(draw, 101, 6)
    assert many.shape == (101, 6)
    assert torch.equal(drawn(draw, 101, 2), many[:, :2])
    assert torch.equal(drawn(draw, 101, 6, torch.float32), many.float())
    assert many.T.is_contiguous()


@PROBES
def test_second_moment_is_isotropic(draw) -> None:
    z = drawn(draw, 8, 20_000)
    expected = torch.eye(8, dtype=torch.float64) / (8 if draw is sphere else 1)
    assert torch.allclose(z @ z.T / 20_000, expected, atol=0.04 / (8 if draw is sphere else 1))


def test_norms() -> None:
    assert torch.allclose(drawn(sphere, 50, 9).norm(dim=0), torch.ones(9, dtype=torch.float64))
    unit = drawn(gaussian, 50, 9)
    assert torch.allclose(unit / unit.norm(dim=0), drawn(sphere, 50, 9))


@PROBES
def test_global_seed_has_no_part(draw) -> None:
    torch.manual_seed(1)
    first = drawn(draw, 10, 2)
    torch.manual_seed(2)
    assert torch.equal(first, drawn(draw, 10, 2))
    state = torch.get_rng_state()
    drawn(draw, 10, 2)
    assert torch.equal(state, torch.get_rng_state())


@PROBES
def test_no_probes(draw) -> None:
    assert drawn(draw, 10, 0).shape == (10, 0)
