"""The page of a slice: complete in itself, the same bytes again, and drawn by a real browser without a network."""

from __future__ import annotations

import builtins
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from landscape.errors import UsageError
from landscape.figures.slice_page import _line, _surface, draw_page
from landscape.figures.style import is_ours
from landscape.results.store import StoredResult
from landscape.slices.stored import grid_of
from slices_made import line, metrics, plane, planes, stored, trajectory, valley, with_holes

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_BROWSER = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
OFFLINE = ("--host-resolver-rules=MAP * 0.0.0.0", "--disable-background-networking", "--no-first-run")

PAGES = {
    "plane": stored(plane(**trajectory(), **metrics(plane()))),
    "valley": stored(plane(31, 31, surface=valley)),
    "holes": stored(with_holes()),
    "line": stored(line(**planes(line()))),
}


def traces(result: StoredResult) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Traces by name, and the layout."""
    grid = grid_of(result)
    found, layout = _line(result, grid) if grid.line else _surface(result, grid)
    return {trace["name"]: trace for trace in found}, layout


def test_the_page_needs_nothing_but_itself() -> None:
    page = draw_page(PAGES["plane"])
    assert draw_page(PAGES["plane"]) == page
    assert is_ours(page, ".html")
    text = page.decode()
    shell = re.sub(r"<script[^>]*>.*?</script>", "", text, flags=re.DOTALL)
    assert "http" not in shell
    assert not re.search(r"<script[^>]*\ssrc=|<link|@import", text[: text.index("plotly.js v")] + text[-20_000:])
    assert not re.search(r"20\d\d-\d\d-\d\d", shell)


def test_words_of_users_are_no_markup() -> None:
    page = draw_page(stored(plane(loss_reference=9.0), checkpoint="<script>alert(1)</script>.pt")).decode()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "self-check failed: the centre is" in page


def test_the_surface_is_the_loss_with_its_holes() -> None:
    result = PAGES["holes"]
    found, layout = traces(result)
    grid = grid_of(result)
    np.testing.assert_array_equal(found["loss"]["z"], grid.loss)
    assert np.isnan(found["loss"]["z"][grid.missing | grid.broken]).all()
    assert not found["loss"]["connectgaps"]
    assert layout["scene"]["zaxis"]["type"] == "linear"


def test_scale_and_buttons() -> None:
    _, layout = traces(PAGES["valley"])
    assert layout["scene"]["zaxis"]["type"] == "log"
    labels = [button["label"] for button in layout["updatemenus"][0]["buttons"]]
    assert labels == ["linear", "logarithmic"]
    assert layout["updatemenus"][0]["active"] == 1
    _, signed = traces(stored(plane(surface=lambda x, y: x + 0 * y)))
    assert "updatemenus" not in signed


def test_cells_and_marks_say_what_they_are() -> None:
    found, _ = traces(PAGES["plane"])
    text = found["loss"]["text"][3, 5]
    for words in ("x -0.5", "y -0.7", "accuracy ", "norm of the gradient ", "smallest eigenvalue "):
        assert words in text
    way = trajectory()
    np.testing.assert_array_equal(found["other checkpoints, true loss"]["z"], way["mark_loss"])
    np.testing.assert_array_equal(found["projected onto the plane"]["z"], way["mark_surface_loss"])
    assert "step=0<br>loss" in found["other checkpoints, true loss"]["text"][0]


def test_without_plotly_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name.startswith("plotly"):
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError) as error:
        draw_page(PAGES["line"])
    assert error.value.hint == "pip install 'torch-landscape[html]'"


def browse(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    profile = f"--user-data-dir={page.parent / 'profile'}"
    logs = ("--enable-logging=stderr", "--virtual-time-budget=10000", "--window-size=900,700")
    command = [BROWSER, *FLAGS, *OFFLINE, profile, *logs, *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@NO_BROWSER
@pytest.mark.parametrize("name", list(PAGES))
def test_a_browser_without_network_draws_the_page(name: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_bytes(draw_page(PAGES[name]))
    done = browse(page, "--dump-dom")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Uncaught" not in done.stderr
    drawn = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", done.stdout, flags=re.DOTALL)
    assert 'class="main-svg"' in drawn
    assert "WebGL is not supported" not in drawn
    if name == "line":
        assert 'class="scatterlayer' in drawn
        assert 'class="js-line"' in drawn
    else:
        assert re.search(r'class="gl-container".*<canvas', drawn, re.DOTALL)
        assert "colorbar" in drawn


@NO_BROWSER
def test_the_surface_is_there_to_see(tmp_path: Path) -> None:
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    page.write_bytes(draw_page(PAGES["valley"]))
    browse(page, f"--screenshot={picture}")
    pixels = matplotlib.image.imread(picture)[..., :3]
    middle = pixels[200:500, 200:700].reshape(-1, 3)
    coloured = np.ptp(middle, axis=1) > 0.2
    assert coloured.mean() > 0.2
    assert len(np.unique(middle[coloured], axis=0)) > 200
