"""How a command finds the problem: the user's function, the checkpoint's header, or an exported network with data."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from landscape.checkpoints.arguments import parse_setting
from landscape.checkpoints.checkpoint import read_checkpoint, write_checkpoint
from landscape.checkpoints.load import load_problem, read_npz
from landscape.errors import CheckpointError, LandscapeError, ProblemError, UsageError
from landscape.models import build_model

FILE = """
import torch
from torch import nn
from landscape import Problem

def problem(width, depth=2, scale: float = 1.0, seed=0):
    torch.manual_seed(99)
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))
    data = scale * torch.ones(6, 4), torch.arange(6) % 3
    return Problem(model, data, "cross_entropy", weight_decay=0.1)
"""


def net(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))


@pytest.fixture
def sweep(tmp_path: Path) -> list[Path]:
    """A foreign sweep of three widths and a problem file beside it."""
    (tmp_path / "problem.py").write_text(FILE)
    paths = []
    for width in (3, 5, 8):
        path = tmp_path / f"width={width}" / "final.pt"
        path.parent.mkdir()
        torch.save({"state_dict": {f"module.{k}": v for k, v in net(width).state_dict().items()}}, path)
        paths.append(path)
    return paths


def write(folder: Path, text: str, name: str = "problem.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


# ---- --problem ----------------------------------------------------------------------------------------------------


def test_one_problem_file_serves_a_whole_sweep(sweep: list[Path]) -> None:
    spec = f"{sweep[0].parent.parent / 'problem.py'}:problem"
    for path, width in zip(sweep, (3, 5, 8), strict=True):
        loaded = load_problem(path, spec, {"scale": "0.5"})
        model = loaded.problem.model
        saved = torch.load(path, weights_only=True)["state_dict"]
        assert torch.equal(model.get_parameter("0.weight"), saved["module.0.weight"])
        assert model.get_parameter("0.weight").shape == (width, 4)
        assert loaded.problem.weight_decay == 0.1
        assert loaded.problem.data[0][0, 0] == 0.5  # type: ignore[index]
        assert f"width={width} is the checkpoint's" in loaded.notes
        assert any("prefix module." in note for note in loaded.notes)
        assert loaded.problem_identity["settings"] == {"width": width, "scale": 0.5}
        assert len(loaded.problem_identity["sha256"]) == 64


def test_a_setting_wins_over_a_coordinate(sweep: list[Path]) -> None:
    spec = str(sweep[0].parent.parent / "problem.py")  # the function's name may be left out
    with pytest.raises(CheckpointError, match="the checkpoint has width 3 where the model has 4"):
        load_problem(sweep[0], spec, {"width": "4"})


def test_tensors_and_header_on_request(tmp_path: Path) -> None:
    text = FILE.replace("(width, depth=2, scale: float = 1.0, seed=0)", "(state_dict, header, scale=1.0)").replace(
        "torch.manual_seed(99)", "width = len(state_dict['0.weight']); assert header['loss'] == 'mse'"
    )
    write_checkpoint(tmp_path / "c.pt", net(7), {"loss": "mse"})
    loaded = load_problem(read_checkpoint(tmp_path / "c.pt"), write(tmp_path, text))
    assert loaded.problem.model.get_parameter("0.weight").shape == (7, 4)
    assert loaded.problem_identity["settings"] == {}  # defaults are in the file's hash


EDITS = FILE.replace("(width, depth=2, scale: float = 1.0, seed=0)", "(state_dict, scale=1.0)").replace(
    "torch.manual_seed(99)", "width = 3; EDIT"
)


@pytest.mark.parametrize(
    ("edit", "note"),
    [
        ("del state_dict['n']", "took 1 tensors out of state_dict"),
        ("del state_dict['n']; state_dict['0.weight'] = state_dict['0.weight'] + 1", "took 1 tensors"),
        ("state_dict['0.bias'] = state_dict.pop('n')", "took 1 tensors out of state_dict"),
        ("state_dict.clear()", "took all tensors out of state_dict"),
    ],
)
def test_what_a_function_leaves_in_state_dict_is_loaded(tmp_path: Path, edit: str, note: str) -> None:
    state = net(3).state_dict() | {"n": torch.arange(3.0)}
    torch.save(state, tmp_path / "c.pt")
    found = read_checkpoint(tmp_path / "c.pt")
    loaded = load_problem(found, write(tmp_path, EDITS.replace("EDIT", edit)))
    assert any(note in n for n in loaded.notes)
    assert torch.equal(found.state["0.weight"], state["0.weight"])  # the checkpoint itself is not edited
    left = dict(state)
    exec(edit, {"state_dict": left})
    for name, tensor in loaded.problem.model.state_dict().items():
        assert torch.equal(tensor, left[name]) if left else not torch.equal(tensor, state[name])


def test_hints_of_misfits_work_when_copied(tmp_path: Path) -> None:
    plain = write(tmp_path, EDITS.replace("EDIT", "pass").replace("(state_dict, ", "("))
    for change in ({"n": torch.ones(2)}, {"0.bias": None, "other": torch.ones(3)}):
        state = {k: v for k, v in (net(3).state_dict() | change).items() if v is not None}
        torch.save(state, tmp_path / "c.pt")
        with pytest.raises(CheckpointError) as caught:
            load_problem(tmp_path / "c.pt", plain)
        edit = (caught.value.hint or "").partition("may edit it, ")[2].partition(", and what it leaves")[0]
        assert "state_dict[" in edit
        load_problem(tmp_path / "c.pt", write(tmp_path, EDITS.replace("EDIT", edit), "edited.py"))


def test_something_else_than_tensors_in_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save(net(3).state_dict(), tmp_path / "c.pt")
    with pytest.raises(ProblemError, match="something else than tensors into state_dict: n"):
        load_problem(tmp_path / "c.pt", write(tmp_path, EDITS.replace("EDIT", "state_dict['n'] = 3")))


def test_modules_of_a_package(sweep: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sweep[0].parent.parent
    (folder / "mypackage_a").mkdir()
    write(folder / "mypackage_a", "")
    write(folder / "mypackage_a", FILE, "tasks.py")
    monkeypatch.chdir(folder)
    assert load_problem(sweep[1], "mypackage_a.tasks:problem").problem.model.get_parameter("0.weight").shape == (5, 4)
    with pytest.raises(UsageError, match=r"no module 'mypackage_a\.task'"):
        load_problem(sweep[1], "mypackage_a.task:problem")
    with pytest.raises(UsageError, match="no module 'problen'") as caught:
        load_problem(sweep[1], "problen")
    assert "problem.py" in (caught.value.hint or "")
    assert str(folder) not in sys.path


def test_a_model_that_is_handed_out_twice_is_not_shared(sweep: list[Path], tmp_path: Path) -> None:
    text = FILE.replace(
        "def problem(", "model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))\ndef problem("
    )
    write(tmp_path, text.replace("    model = nn", "    _ = nn"), "shared_model_b.py")
    sys.path.insert(0, str(tmp_path))
    try:
        first = load_problem(sweep[0], "shared_model_b").problem.model
        other = tmp_path / "width=3" / "other.pt"
        torch.save(net(3).state_dict(), other)
        before = first.get_parameter("0.weight").clone()
        second = load_problem(other, "shared_model_b").problem.model
    finally:
        sys.path.remove(str(tmp_path))
    assert torch.equal(first.get_parameter("0.weight"), before)
    assert not torch.equal(second.get_parameter("0.weight"), before)


def test_neighbours_of_the_file_are_found_and_not_mixed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, width in enumerate((3, 5)):
        folder = tmp_path / f"project{number}"
        folder.mkdir()
        write(folder, f"WIDTH = {width}", "my_settings_c.py")
        write(
            folder,
            "from my_settings_c import WIDTH as width\nprint('hello')\n" + FILE.replace("problem(width, ", "problem("),
        )
        torch.save(net(width).state_dict(), folder / "c.pt")
        loaded = load_problem(folder / "c.pt", str(folder / "problem.py"))
        assert loaded.problem.model.get_parameter("0.weight").shape == (width, 4)
    out = capsys.readouterr()
    assert out.out == ""
    assert "hello" in out.err


USER_MISTAKES: dict[str, tuple[str, str, type[LandscapeError], str]] = {
    "raises": (
        "def problem():\n    x = 1\n    raise ValueError('bad thing')\n",
        "",
        ProblemError,
        r"problem\.py line 3: ValueError: bad thing",
    ),
    "deep": (
        "import json\ndef helper():\n    return json.loads('{')\ndef problem():\n    return helper()\n",
        "",
        ProblemError,
        r"problem\.py line 3: JSONDecodeError",
    ),
    "import time": ("1 / 0\n", "", ProblemError, r"problem\.py line 1: ZeroDivisionError: division by zero"),
    "syntax": ("def problem():\n    return (\n", "", ProblemError, r"problem\.py line 2: SyntaxError"),
    "null bytes": ("x = 1\0", "", ProblemError, r"problem\.py: |problem\.py line"),
    "missing package": ("import not_installed_x\n", "", ProblemError, "ModuleNotFoundError"),
    "exits": ("import sys\ndef problem():\n    sys.exit(2)\n", "", ProblemError, r"problem\.py line 3: SystemExit: 2"),
    "returns nothing": ("def problem():\n    pass\n", "", ProblemError, "returned nothing, not a landscape.Problem"),
    "returns a tuple": ("def problem():\n    return (1, 2)\n", "", ProblemError, "returned a tuple"),
    "no function": ("def probelm():\n    pass\n", "", UsageError, "has no function 'problem'; it has probelm"),
    "empty": ("", "", UsageError, "it defines no function"),
    "other function": ("def a():\n    pass\n", ":b", UsageError, "has no function 'b'"),
    "constant": ("x = 3\n", ":x", UsageError, r"'x' of .* is a int, not a function"),
    "module": (
        "from torch import nn\nx = nn.Linear(2, 2)\n",
        ":x",
        UsageError,
        r"'x' of .* is a Linear, not a function",
    ),
    "needs more": ("def problem(depth):\n    pass\n", "", UsageError, r"problem\(\) needs depth"),
    "bad problem": (
        "from torch import nn\nfrom landscape import Problem\ndef problem():\n"
        "    return Problem(nn.Linear(2, 2), [], 'no_such_loss')\n",
        "",
        ProblemError,
        r"problem\.py line 4: there is no built-in loss",
    ),
}


@pytest.mark.parametrize("mistake", USER_MISTAKES)
def test_mistakes_in_the_users_file_are_shown_where_they_are(tmp_path: Path, mistake: str) -> None:
    text, suffix, kind, message = USER_MISTAKES[mistake]
    torch.save(net(3).state_dict(), tmp_path / "c.pt")
    with pytest.raises(kind, match=message) as caught:
        load_problem(tmp_path / "c.pt", write(tmp_path, text) + suffix)
    assert type(caught.value) is kind
    assert "\n" not in caught.value.message
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize("name", ["const", "problem"])
def test_a_problem_in_place_of_its_function_has_a_hint_that_works(tmp_path: Path, name: str) -> None:
    made = "Problem(nn.Linear(2, 1), (torch.ones(3, 2), torch.ones(3, 1)), 'mse')"
    text = f"import torch\nfrom torch import nn\nfrom landscape import Problem\ndef data(): pass\n{name} = {made}\n"
    file = write(tmp_path, text)
    torch.save(torch.nn.Linear(2, 1).state_dict(), tmp_path / "c.pt")
    with pytest.raises(
        UsageError, match=f"'{name}' of .* is a Problem, not a function that returns a Problem"
    ) as refused:
        load_problem(tmp_path / "c.pt", f"{file}:{name}")
    function, _, written = (refused.value.hint or "").partition(", and write --problem ")
    function = function.partition(", ")[2].replace("Problem(model, data, loss)", made)
    write(tmp_path, f"{text}\n{function}\n")
    assert load_problem(tmp_path / "c.pt", written).problem.loss == "mse"


def test_settings_that_do_not_fit_are_usage_errors(sweep: list[Path]) -> None:
    spec = str(sweep[0].parent.parent / "problem.py")
    with pytest.raises(UsageError, match="it takes width, depth, scale, seed") as caught:
        load_problem(sweep[0], spec, {"widht": "3"})
    assert "--set width" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="there is no file") as caught:
        load_problem(sweep[0], spec.replace("problem.py", "problm.py"))
    assert "problem.py" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="do not go together"):
        load_problem(sweep[0], spec, data="x.npz")
    with pytest.raises(UsageError, match="goes to the function of --problem"):
        load_problem(sweep[0], settings={"a": "1"})
    with pytest.raises(UsageError, match=r"needs |not a Python function"):
        load_problem(sweep[0], "math:hypot")
    with pytest.raises(UsageError, match="names no file"):
        load_problem(sweep[0], ":problem")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("3", 3), ("-1e-3", -1e-3), ("True", True), ("false", False), ("none", None), ("(1, 2)", (1, 2))],
        *[("relu", "relu"), ("'3'", "3"), ("inf", math.inf), ("a/b.pt", "a/b.pt"), ("", ""), ("1 +", "1 +")],
        *[("[1, 'a']", [1, "a"]), ("__import__('os')", "__import__('os')"), ("((((" * 100, "((((" * 100)],
    ],
)
def test_settings_are_python_literals_or_text(text: str, value: object) -> None:
    assert parse_setting(text) == value
    assert type(parse_setting(text)) is type(value)


@given(st.text())
def test_any_text_is_a_setting(text: str) -> None:
    parse_setting(text)


@given(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False))
def test_literals_come_back(value: object) -> None:
    assert parse_setting(repr(value)) == value


# ---- the header ---------------------------------------------------------------------------------------------------


HEADER: dict[str, Any] = {"data": "digits", "data_settings": {}, "loss": "cross_entropy", "coordinates": {"width": 6}}


def built_in(path: Path, **changes: Any) -> tuple[Path, nn.Module]:
    from landscape.models import settings_for

    model_settings = settings_for("mlp", (64,), 10) | {"width": 6}
    model = build_model("mlp", model_settings, seed=4)
    write_checkpoint(path, model, HEADER | {"model": "mlp", "model_settings": model_settings} | changes)
    return path, model


def test_the_header_is_enough_for_our_own_checkpoints(tmp_path: Path) -> None:
    path, model = built_in(tmp_path / "c.pt")
    loaded = load_problem(path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.problem.model.state_dict()[name], tensor)
    assert loaded.problem.loss == "cross_entropy"
    assert loaded.problem_identity["data"] == "digits"
    again = load_problem(built_in(tmp_path / "d.pt", loss="mse")[0])
    assert again.problem_identity != loaded.problem_identity


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet9"}, "header is unusable: .*resnet9"),
        ({"data": "imagenet"}, "header is unusable: .*imagenet"),
        ({"model_settings": {"no_such": 1}}, "header is unusable: .*no_such"),
        ({"loss": "hinge"}, "'hinge', which is unknown"),
        ({"weight_decay": "much"}, "weight_decay"),
    ],
)
def test_headers_that_name_the_unknown(tmp_path: Path, changes: Mapping[str, Any], message: str) -> None:
    path, _ = built_in(tmp_path / "c.pt", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_problem(path)


def test_a_problem_named_by_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    spec = write(tmp_path, "open('mark', 'w')\n")
    write_checkpoint(tmp_path / "c.pt", net(3), {"problem": spec})
    with pytest.raises(CheckpointError, match="never run by itself") as caught:
        load_problem(tmp_path / "c.pt")
    assert f"--problem {spec}" in (caught.value.hint or "")


def test_weights_alone_need_a_problem(tmp_path: Path) -> None:
    torch.save(net(3).state_dict(), tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="holds weights only") as caught:
        load_problem(tmp_path / "c.pt")
    assert "--problem problem.py:problem" in (caught.value.hint or "")


# ---- exported networks and .npz data ------------------------------------------------------------------------------


def npz(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_exported_networks_with_data_and_loss(tmp_path: Path) -> None:
    model = net(5).eval()
    program = torch.export.export(model, (torch.ones(2, 4),), dynamic_shapes=({0: torch.export.Dim("b")},))
    torch.export.save(program, tmp_path / "c.pt2")
    data = npz(tmp_path / "d.npz", inputs=np.random.default_rng(0).normal(size=(7, 4)), targets=np.arange(7) % 3)
    loaded = load_problem(tmp_path / "c.pt2", data=data, loss="cross_entropy")
    problem = loaded.problem
    assert torch.equal(problem.model.get_parameter("2.weight"), model[2].weight)
    total, count = problem.loss_function(problem.model.double(), problem.data)
    total.backward()  # type: ignore[no-untyped-call]
    assert count == 7
    assert problem.model.get_parameter("0.weight").grad is not None
    with pytest.raises(UsageError, match="without data and loss"):
        load_problem(tmp_path / "c.pt2", loss="mse")
    with pytest.raises(UsageError, match="no built-in loss 'hinge'"):
        load_problem(tmp_path / "c.pt2", data=data, loss="hinge")
    wrong = npz(tmp_path / "w.npz", inputs=np.ones((2, 5)), targets=np.ones(2))
    with pytest.raises(ProblemError, match=r"takes inputs of shape \(any, 4\)"):
        load_problem(tmp_path / "c.pt2", data=wrong, loss="mse")
    (tmp_path / "problem.py").write_text(FILE)  # its weights serve a problem function too
    by_function = load_problem(tmp_path / "c.pt2", str(tmp_path / "problem.py"), {"width": 5})
    assert torch.equal(by_function.problem.model.get_parameter("2.weight"), model[2].weight)


def test_data_of_ones_own_for_a_built_in_network(tmp_path: Path) -> None:
    path, _ = built_in(tmp_path / "c.pt")
    data = npz(tmp_path / "d.npz", inputs=np.ones((3, 64), np.float32), targets=np.arange(3))
    loaded = load_problem(path, data=data)
    assert loaded.problem.data[0].shape == (3, 64)  # type: ignore[index]
    assert "data_sha256" in loaded.problem_identity
    assert load_problem(path, data=data, loss="mse").problem.loss == "mse"


def test_npz_types(tmp_path: Path) -> None:
    for stored, used in [(">f8", torch.float64), ("f2", torch.float16), ("u1", torch.int64), ("?", torch.bool)]:
        path = npz(tmp_path / "d.npz", inputs=np.ones((2, 3), stored), targets=np.arange(2, dtype="i2"))
        inputs, targets = read_npz(path)
        assert (inputs.dtype, targets.dtype) == (used, torch.int64)
        assert bool((inputs == 1).all())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"inputs": np.ones((2, 3))}, "no array 'targets'; it has inputs"),
        ({"inputs": np.ones((2, 3)), "targets": np.ones(3)}, r"inputs have shape \(2, 3\) and targets \(3,\)"),
        ({"inputs": np.array([{}, {}]), "targets": np.ones(2)}, "pickled objects"),
        ({"inputs": np.array(["a", "b"]), "targets": np.ones(2)}, "of type <U1"),
    ],
)
def test_npz_mistakes(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        read_npz(npz(tmp_path / "d.npz", **arrays))


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        read_npz(str(tmp_path / "none.npz"))
    np.save(tmp_path / "d.npy", np.ones(2))
    with pytest.raises(ProblemError, match="single array"):
        read_npz(str(tmp_path / "d.npy"))
    (tmp_path / "t.npz").write_text("hello")
    with pytest.raises(ProblemError, match="cannot be read"):
        read_npz(str(tmp_path / "t.npz"))
    data = Path(npz(tmp_path / "c.npz", inputs=np.ones((9, 9)), targets=np.ones(9))).read_bytes()
    (tmp_path / "c.npz").write_bytes(data[:300])
    with pytest.raises(ProblemError, match="cannot be read"):
        read_npz(str(tmp_path / "c.npz"))
