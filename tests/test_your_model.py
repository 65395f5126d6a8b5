"""docs/your-model.md: every problem.py on it runs as it stands, from a checkpoint, with the right Hessian."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import landscape
from dense_truth import dense_truth
from landscape.errors import ProblemError

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "your-model.md").read_text()
SECTIONS: dict[str, str] = dict(
    re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
)


def made_by(code: str) -> landscape.Problem:
    names: dict[str, Any] = {}
    exec(code, names)
    problem: landscape.Problem = names["problem"]()
    return problem


def from_checkpoint(title: str, folder: Path) -> landscape.Problem:
    (folder / "problem.py").write_text(SECTIONS[title])
    torch.save(made_by(SECTIONS[title]).model.state_dict(), folder / "final.pt")
    return landscape.load_problem(str(folder / "final.pt"), f"{folder}/problem.py:problem").problem


def test_every_section_has_its_problem() -> None:
    assert len(SECTIONS) == PAGE.count("\n## ")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("title", SECTIONS)
def test_its_spectrum_is_right(title: str, tmp_path: Path) -> None:
    problem = from_checkpoint(title, tmp_path)
    found = landscape.spectrum(problem, top=3, bottom=2, density=False, precision="float64")
    wide = SECTIONS[title].replace("tensor([1.0, 4.0, 2.0])", "tensor([1.0, 4.0, 2.0], dtype=torch.float64)")
    truth = dense_truth(replace(made_by(wide), model=problem.model), sharp=False)
    for values, residuals in ((found.top_value, found.top_residual), (found.bottom_value, found.bottom_residual)):
        off = abs(truth.eigenvalues[None, :] - values[:, None]).min(1)
        assert (off <= residuals + 1e-12 * truth.scale).all(), title
    assert abs(found.top_value[0] - truth.eigenvalues.max()) <= found.top_residual[0] + 1e-12 * truth.scale


def test_what_it_says_of_gauss_newton_matrices_and_cut_batches(tmp_path: Path) -> None:
    for title in ("A physics-informed network", "A normalising flow, or another model with a method of its own"):
        with pytest.raises(ProblemError, match="Gauss"):
            landscape.spectrum(from_checkpoint(title, tmp_path), operator="ggn")
    contrastive = from_checkpoint("A contrastive loss, or another where samples see each other", tmp_path)
    with pytest.raises(ProblemError, match="see each other"):
        landscape.spectrum(contrastive, batch_size=2)
