"""The histogram in text: every eigenvalue counted, intervals where probes estimate, and it fits the terminal."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

from landscape.cli.views.histogram import bin_edges, count_eigenvalues, histogram_lines
from samples import sample_spectrum
from spectra import gallery, probed, softmax_hessian, spectrum_of, without_density


def numbers(rows: list[str]) -> list[int]:
    return [int(re.split(r"│[█▏▎▍▌▋▊▉]* +", row)[1].replace(",", "")) for row in rows[1:]]


def test_histogram_counts_every_eigenvalue() -> None:
    eigenvalues = np.concatenate([[-0.2, -0.004], np.zeros(1200), np.geomspace(1e-5, 4.0, 300)])
    rows = histogram_lines(spectrum_of(eigenvalues).arrays(), unicode=True)
    assert sum(numbers(rows)) == 1502
    assert "|λ| ≤ 4e-6" in "\n".join(rows)
    negative = [n for row, n in zip(rows[1:], numbers(rows), strict=True) if row.lstrip().startswith("-")]
    assert [n for n in negative if n] == [1, 1]
    assert "all 1,502" in rows[0]
    assert max(rows[1:], key=lambda row: row.count("█")).endswith("1,200")


def test_histogram_of_probes_has_intervals_and_the_right_total() -> None:
    counts = count_eigenvalues(probed().arrays())
    assert counts is not None
    assert counts.count.sum() == pytest.approx(48)
    assert (counts.high > counts.low).any()
    known = np.linalg.eigvalsh(softmax_hessian())
    truth = np.histogram(known, counts.edges)[0]
    assert np.all((counts.low <= truth) & (truth <= counts.high))
    rows = histogram_lines(probed().arrays(), unicode=True)
    assert "4 probes, [95 %]" in rows[0]
    assert any("[" in row for row in rows[1:])


def test_deflated_eigenvalues_count_as_one_each() -> None:
    nodes, weights = np.full((3, 4), 0.01), np.full((3, 4), (40 - 6) / 40 / 4)
    spectrum = sample_spectrum(eigenvalues=None, node=nodes, weight=weights, kernel_width=None)
    counts = count_eigenvalues(spectrum.arrays())
    assert counts is not None
    assert counts.count.sum() == pytest.approx(40)
    for value in (-0.2, -0.1, -0.02, 1.5, 2.5, 3.5):
        (place,) = np.flatnonzero((counts.edges[:-1] < value) & (value <= counts.edges[1:]))
        assert counts.low[place] >= 1


def test_files_of_older_versions_leave_it_to_the_neighbours() -> None:
    """Without brackets, residuals and the list of what was taken out, intervals are wider, and right."""
    none = dict.fromkeys(("node_low", "node_high", "node_residual", "deflated_value", "deflated_residual"))
    old, new = count_eigenvalues(probed(**none).arrays()), count_eigenvalues(probed().arrays())
    assert old is not None
    assert new is not None
    truth = np.histogram(np.linalg.eigvalsh(softmax_hessian()), old.edges)[0]
    assert np.all((old.low <= truth) & (truth <= old.high))
    assert (old.high - old.low).sum() >= (new.high - new.low).sum()


@pytest.mark.parametrize("columns", [40, 72, 80])
@pytest.mark.parametrize("name", ["probed", "dense", "positive", "zero", "tiny", "one probe", "no pairs"])
def test_histogram_fits_and_has_an_ascii_form(columns: int, name: str) -> None:
    arrays = gallery()[name][0].arrays
    for unicode in (True, False):
        rows = histogram_lines(arrays, columns, unicode)
        assert 2 <= len(rows) <= 14
        assert max(map(len, rows)) <= columns
    assert "".join(rows).isascii()


def test_histogram_follows_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        encoding = "ANSI_X3.4-1968"

    monkeypatch.setattr(sys, "stdout", Terminal())
    assert "".join(histogram_lines(probed().arrays())).isascii()
    monkeypatch.setattr(Terminal, "encoding", "UTF-8")
    assert not "".join(histogram_lines(probed().arrays())).isascii()


def test_no_histogram_without_density() -> None:
    assert histogram_lines(without_density(node=None, weight=None).arrays()) == []
    assert histogram_lines(probed(node=np.full((2, 3), np.nan), weight=np.full((2, 3), np.nan)).arrays()) == []


@pytest.mark.parametrize("high", [1e-20, 3.0, 1e12])
def test_bins_cover_both_ends_in_few_rows(high: float) -> None:
    edges = bin_edges(np.array([-high / 7, 0.0, high]), floor=1e-9 * high)
    assert edges.size - 1 <= 12
    assert edges[0] <= -high / 7
    assert edges[-1] >= high
    assert (np.diff(edges) > 0).all()


def test_histogram_does_not_wait_for_matplotlib() -> None:
    code = "import sys, landscape.cli.views.histogram as t; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
