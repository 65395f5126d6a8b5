"""Directions of slices: their defining identities, for every kind, and how they are named."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from landscape.checkpoints.beside import read_directions
from landscape.errors import UsageError
from landscape.problem.objective import Objective, build_objective
from landscape.problem.parameters import layout_of, trainable
from landscape.problem.problem import Problem
from landscape.slices.direction_words import KINDS, Spec, parse_directions
from landscape.slices.directions import TABLE, make_directions
from landscape.slices.directions.direction import Around, Eigenvectors
from landscape.slices.directions.groups import groups, ignored, norms_of, orthogonalised, rescaled


class Everything(nn.Module):
    """A parameter of every kind that filter normalisation knows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm = nn.LayerNorm(6)
        self.convolution = nn.Conv1d(6, 4, 3, padding=1)
        self.bn = nn.BatchNorm1d(4)
        self.back = nn.ConvTranspose1d(4, 5, 3, padding=1)
        self.head = nn.Linear(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        x = torch.tanh(self.back(torch.tanh(self.bn(self.convolution(x.transpose(1, 2))))))
        z: Tensor = self.head(x.mean(2))
        return z


def everything(dtype: torch.dtype = torch.float64) -> Objective:
    torch.manual_seed(0)
    model = Everything()
    data = (torch.randint(7, (23, 5)), torch.randint(3, (23,)))
    return build_objective(Problem(model, data, "cross_entropy"), dtype=dtype)


def small(dtype: torch.dtype = torch.float64) -> Objective:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return build_objective(Problem(model, (torch.randn(17, 3), torch.randn(17, 2)), "mse"), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["filter", "layer", "global", "none"])
@pytest.mark.parametrize("ignore", ["bias+norm", "bias", "norm", "none"])
def test_random_directions_have_the_norms_of_the_parameters(norm: str, ignore: str, dtype: torch.dtype) -> None:
    objective = everything(dtype)
    theta = objective.point()
    spec = Spec("random", {"norm": norm, "ignore": ignore})
    first, second = (d.vector for d in make_directions([spec], Around(objective), 2))
    members = groups(objective.model, objective.layout, norm)
    left_alone = ignored(objective.model, objective.layout, ignore)
    eps = torch.finfo(dtype).eps
    for vector in (first, second):
        assert vector.dtype == dtype
        assert not vector[left_alone].any()
        if norm == "filter" or ignore == "none":
            kept = torch.ones(int(members.max()) + 1, dtype=torch.bool)
            kept[members[left_alone]] = False
            if norm != "none":
                wanted, found = norms_of(theta, members)[kept], norms_of(vector, members)[kept]
                torch.testing.assert_close(found, wanted, rtol=20 * eps, atol=0)
    sizes = torch.bincount(members[~left_alone])
    if (sizes[sizes > 0] > 1).all():
        assert abs(float(first.double() @ second.double())) <= 50 * eps * float(first.norm() * second.norm())


def test_a_filter_is_what_feeds_one_neuron_channel_or_token() -> None:
    objective = everything()
    sizes = torch.bincount(groups(objective.model, objective.layout, "filter")).tolist()
    wanted = [6] * 7  # tokens
    wanted += [6] * 18 + [18] + [6] * 6 + [6]  # attention: in, its bias, out, its bias
    wanted += [6, 6]  # LayerNorm
    wanted += [18] * 4 + [4]  # convolution: 6 channels x 3
    wanted += [4, 4]  # BatchNorm
    wanted += [12] * 5 + [5]  # transposed: output channels lie on axis 1
    wanted += [5] * 3 + [3]
    assert sizes == wanted


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_orthogonal_in_every_group_stays_so_after_rescaling(seed: int, sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    members = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    a, b, like = torch.randn(3, len(members), dtype=torch.float64, generator=generator)
    made = rescaled(orthogonalised(b, a, members), like, members)
    inner = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, members, made * a)
    scale = norms_of(made, members) * norms_of(a, members)
    several = torch.tensor(sizes) > 1
    assert (inner.abs()[several] <= 1e-10 * scale[several] + 1e-300).all()
    torch.testing.assert_close(norms_of(made, members), norms_of(like, members), rtol=1e-10, atol=1e-12)


def test_seeds_and_planes_give_other_directions_and_the_same_again() -> None:
    objective = small()

    def drawn(seed: int, plane: int, option: str = "") -> Tensor:
        spec = Spec("random", {"seed": option} if option else {})
        return make_directions([spec], Around(objective, seed=seed, plane=plane), 1)[0].vector

    assert torch.equal(drawn(0, 0), drawn(0, 0))
    assert torch.equal(drawn(0, 0, "5"), drawn(1, 0, "5"))
    for other in (drawn(1, 0), drawn(0, 1), drawn(0, 0, "5")):
        assert not torch.equal(drawn(0, 0), other)


def test_eigenvectors_are_eigenvectors() -> None:
    objective = small()
    vectors = make_directions(parse_directions("hessian:top=1+hessian:bottom=1"), Around(objective), None)
    parameters = objective.point()

    def loss(theta: Tensor) -> Tensor:
        named = dict(zip(objective.names, objective.layout.unflatten(theta), strict=True))
        x, y = objective.batches[0]
        return (torch.func.functional_call(objective.model, named, (x,)) - y).square().sum() / objective.count

    matrix = torch.func.hessian(loss)(parameters)
    values = torch.linalg.eigvalsh(matrix)
    for direction, value in zip(vectors, (values[-1], values[0]), strict=True):
        v = direction.vector
        assert float(v.norm()) == pytest.approx(1, abs=1e-9)
        assert float((matrix @ v - value * v).norm()) <= 2e-3 * float(abs(value)) + 1e-6 * float(values[-1])
    assert f"{float(values[-1]):.4g}"[:4] in vectors[0].label


def test_stored_eigenvectors_are_taken_and_said_to_be() -> None:
    objective = small()
    n = objective.layout.total
    vectors = torch.eye(n, dtype=torch.float64)[:2]
    wide = float(objective.value()) + 100.0  # residuals so large that any vector is within them
    stored = Eigenvectors(top=(torch.tensor([3.0, 2.0]), torch.tensor([wide, wide]), vectors))
    around = Around(objective, eigenvectors=stored)
    found = make_directions([Spec("hessian", {"top": "2"})], around, 2)
    assert torch.equal(torch.stack([d.vector for d in found]), vectors)
    assert any("stored spectrum" in note for note in around.notes)
    assert any("not converged" in note for note in around.notes)
    one = make_directions([Spec("hessian", {"bottom": "1"})], Around(objective, eigenvectors=stored), 1)[0].vector
    assert not torch.equal(one, vectors[0])


def test_the_gradient_points_downhill() -> None:
    objective = small()
    direction = make_directions([Spec("gradient", {})], Around(objective), None)[0].vector
    slope = objective.value_and_gradient()[1]
    torch.testing.assert_close(direction * slope.norm(), -slope)


def test_a_trajectory_in_a_plane_is_explained_by_it() -> None:
    objective = small()
    theta = objective.point()
    generator = torch.Generator().manual_seed(3)
    u, v = torch.linalg.qr(torch.randn(len(theta), 2, dtype=torch.float64, generator=generator))[0].T
    path = [(f"{t}", theta + (5 - t) * u + 0.3 * math.sin(t) * v) for t in range(5)]
    first, second = make_directions([Spec("pca", {})], Around(objective, trajectory=path), None)
    assert first.explained is not None
    assert second.explained is not None
    assert first.explained + second.explained == pytest.approx(1, abs=1e-10)
    assert first.explained > 0.9
    assert abs(float(first.vector @ second.vector)) < 1e-10
    for _, point in path:
        moved = point - theta
        rest = moved - (moved @ first.vector) * first.vector - (moved @ second.vector) * second.vector
        assert float(rest.norm()) < 1e-9
        assert first.low is not None
        assert first.high is not None
        assert first.low <= float(moved @ first.vector) <= first.high
    one = make_directions([Spec("pca", {})], Around(objective, trajectory=path[:1]), 1)[0]
    assert one.explained == pytest.approx(1)


def test_three_checkpoints_span_their_plane() -> None:
    objective = small()
    theta = objective.point()
    a, b = theta + torch.randn_like(theta), theta + torch.randn_like(theta)
    around = Around(objective, points={"a": a, "b": b})
    spec = Spec("between", {"to": "a", "third": "b"})
    x, y = make_directions([spec], around, None)
    assert float(x.vector.norm()) == pytest.approx(float(y.vector.norm()))  # so that the plane is not distorted
    assert abs(float(x.vector @ y.vector)) < 1e-9 * float(x.vector @ x.vector)
    torch.testing.assert_close(theta + x.vector, a)
    s, t = torch.linalg.lstsq(torch.stack([x.vector, y.vector], 1), b - theta).solution
    torch.testing.assert_close(theta + s * x.vector + t * y.vector, b)
    assert y.high is not None
    assert float(t) <= y.high
    with pytest.raises(UsageError, match="on the line"):
        make_directions([spec], Around(objective, points={"a": a, "b": theta + 2 * (a - theta)}), None)
    with pytest.raises(UsageError, match="same parameters"):
        make_directions([Spec("between", {"to": "a"})], Around(objective, points={"a": theta}), None)


def test_directions_from_files(tmp_path: Path) -> None:
    objective = small()
    layout = layout_of(trainable(objective.model))
    vector = torch.arange(1.0, layout.total + 1, dtype=torch.float64)
    tensors = dict(zip(layout.names, layout.unflatten(vector), strict=True))
    torch.save({k: v.clone() for k, v in tensors.items()}, tmp_path / "one.pt")
    torch.save([{k: v.clone() for k, v in tensors.items()}, {"2.bias": torch.ones(2)}], tmp_path / "two.pt")
    for name, count in (("one.pt", 1), ("two.pt", 2)):
        spec = Spec("file", {"path": name})
        found = make_directions([spec], Around(objective, tensors={name: read_directions(tmp_path / name)}), None)
        assert len(found) == count
        assert torch.equal(found[0].vector, vector)
    assert found[1].vector.count_nonzero() == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"nowhere": torch.ones(3)}, "no parameter of this model"),
        ({"0.weight": torch.ones(2, 2)}, "has shape"),
        ({"0.weight": torch.zeros(4, 3)}, "length zero"),
        ({}, "holds no directions"),
        (torch.ones(3), "holds no directions"),
    ],
)
def test_files_that_are_no_directions(content: object, words: str, tmp_path: Path) -> None:
    def made() -> object:
        tensors = {"d.pt": read_directions(tmp_path / "d.pt")}
        return make_directions([Spec("file", {"path": "d.pt"})], Around(small(), tensors=tensors), None)

    torch.save(content, tmp_path / "d.pt")
    with pytest.raises(UsageError, match=words):
        made()
    (tmp_path / "d.pt").write_bytes(b"no pickle")
    with pytest.raises(UsageError, match="cannot be read"):
        read_directions(tmp_path / "d.pt")


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("random", [("random", {})]),
        ("random:norm=filter,seed=3", [("random", {"norm": "filter", "seed": "3"})]),
        ("random:ignore=bias+norm", [("random", {"ignore": "bias+norm"})]),
        ("hessian:top=1+hessian:bottom=1", [("hessian", {"top": "1"}), ("hessian", {"bottom": "1"})]),
        ("gradient+random:norm=none", [("gradient", {}), ("random", {"norm": "none"})]),
        ("between:to=a+b,c/d=1.pt", [("between", {"to": "a+b,c/d=1.pt"})]),
        ("between:to=x.pt,third=y.pt", [("between", {"to": "x.pt", "third": "y.pt"})]),
    ],
)
def test_words_for_directions(text: str, specs: list[tuple[str, dict[str, str]]]) -> None:
    assert [(s.kind, dict(s.options)) for s in parse_directions(text)] == specs


@pytest.mark.parametrize(
    ("text", "axes", "words"),
    [
        ("sideways", None, "no kind of direction"),
        ("random:norm", None, "OPTION=VALUE"),
        ("random:size=3", None, "no option 'size'"),
        ("random:seed=x", None, "not a number"),
        ("random:norm=huge", None, "no norm 'huge'"),
        ("random:ignore=weights", None, "nothing called 'weights'"),
        ("hessian:top=3", None, "3 eigenvectors"),
        ("hessian:top=-1", None, "negative"),
        ("between", None, "need to"),
        ("pca", None, "at least 2 other checkpoints"),
        ("gradient", 2, "gives 1 directions, and two"),
        ("hessian:top=2", 1, "gives 2 directions, and one"),
        ("gradient+gradient+gradient", None, "3 directions"),
    ],
)
def test_mistakes_in_words(text: str, axes: int | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_directions(parse_directions(text), Around(small()), axes)


def test_the_table_names_every_kind() -> None:
    assert set(TABLE) == set(KINDS)
    for module in TABLE.values():
        assert hasattr(module, "Options")
        assert callable(module.make)


def test_a_direction_of_zero_length_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    objective = build_objective(Problem(model, (torch.randn(5, 3), torch.zeros(5, 2)), "mse"))
    with pytest.raises(UsageError, match="length zero"):
        make_directions([Spec("random", {})], Around(objective), None)
    with pytest.raises(UsageError, match="gradient is zero"):
        make_directions([Spec("gradient", {})], Around(objective), None)
    assert torch.isfinite(make_directions([Spec("random", {"norm": "none"})], Around(objective), 1)[0].vector).all()


def test_joined_random_directions_differ_and_parallel_ones_are_refused() -> None:
    objective = small()
    first, second = make_directions(parse_directions("random+random"), Around(objective), None)
    assert abs(float(first.vector @ second.vector)) < 0.9 * float(first.vector.norm() * second.vector.norm())
    alone = make_directions(parse_directions("random"), Around(objective), 1)[0]
    assert torch.equal(first.vector, alone.vector)
    with pytest.raises(UsageError, match="parallel"):
        make_directions(parse_directions("gradient+gradient"), Around(objective), None)


class Vectors(nn.Module):
    """Parameters of one axis or none, some of which are zero; biases among them."""

    def __init__(self, sizes: list[int], zero: list[bool], biases: list[bool]) -> None:
        super().__init__()
        for number, (size, empty, bias) in enumerate(zip(sizes, zero, biases, strict=True)):
            values = torch.zeros(size) if empty else torch.arange(1.0, size + 1)
            self.register_parameter(f"{'bias_' if bias else 'p'}{number}", nn.Parameter(values.squeeze()))

    def forward(self, x: Tensor) -> Tensor:
        return x * sum(p.exp().sum() for p in self.parameters())


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_refused_random_plane_has_a_hint_that_works(draw: st.DataObject) -> None:
    """Networks of few numbers, many of them zero or ignored: whenever two of them can span a plane, the hint does."""
    tensors = draw.draw(st.integers(1, 3))
    flags = st.lists(st.booleans(), min_size=tensors, max_size=tensors)
    sizes = draw.draw(st.lists(st.integers(1, 3), min_size=tensors, max_size=tensors))
    model = Vectors(sizes, draw.draw(flags), draw.draw(flags))
    around = Around(build_objective(Problem(model, (torch.ones(2, 1), torch.ones(2, 1)), "mse")))
    typed = draw.draw(st.sampled_from(["random", "random:seed=3", "random:norm=layer", "random+random"]))
    try:
        assert len(make_directions(parse_directions(typed), around, 2)) == 2
    except UsageError as refused:
        hint = refused.hint or ""
        if sum(sizes) == 1:
            line = hint.partition("--dirs ")[2].removesuffix(" --points 51")
            assert len(make_directions(parse_directions(line), around, 1)) == 1
            return
        written = hint.partition("write --dirs ")[2]
        assert set(typed.partition(":")[2].split(",")) - set(written.partition(":")[2].split(",")) <= {"", "norm=layer"}
        assert len(make_directions(parse_directions(written), around, 2)) == 2


def test_stored_eigenvectors_of_another_loss_are_not_taken() -> None:
    objective = small()
    n = objective.layout.total
    stored = Eigenvectors(top=(torch.tensor([3.0]), torch.tensor([1e-9]), torch.eye(n, dtype=torch.float64)[:1]))
    around = Around(objective, eigenvectors=stored)
    found = make_directions([Spec("hessian", {"top": "1"})], around, 1)[0]
    assert not torch.equal(found.vector, stored.top[2][0])  # type: ignore[index]
    assert not any("stored spectrum" in note for note in around.notes)


def test_biases_of_recurrent_layers_stay_as_they_are() -> None:
    model = nn.LSTM(3, 4)
    layout = layout_of(trainable(model))
    left_alone = ignored(model, layout, "bias")
    for name, offset, size in zip(layout.names, layout.offsets, layout.sizes, strict=True):
        assert bool(left_alone[offset : offset + size].all()) == ("bias" in name)


def test_paths_may_hold_commas_and_equal_signs() -> None:
    (spec,) = parse_directions("between:to=lr=0.1,width=8/final.pt,third=lr=0.2,width=8/final.pt")
    assert dict(spec.options) == {"to": "lr=0.1,width=8/final.pt", "third": "lr=0.2,width=8/final.pt"}


@pytest.mark.parametrize("value", [math.nan, math.inf, 1j])
def test_directions_are_finite_and_real(value: complex) -> None:
    tensors = {"d.pt": [{"2.bias": torch.full((2,), value)}]}
    with pytest.raises(UsageError, match="complex numbers, NaN or Inf"):
        make_directions([Spec("file", {"path": "d.pt"})], Around(small(), tensors=tensors), None)


def test_directions_in_groups_of_a_file(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["one/2.bias"] = [1.0, 0.0]
        file["two/2.bias"] = [0.0, 1.0]
    found = read_directions(tmp_path / "d.h5")
    assert [t["2.bias"].tolist() for t in found] == [[1.0, 0.0], [0.0, 1.0]]


def test_names_that_were_not_given() -> None:
    for text in ("between:to=b", "file:path=q.pt"):
        with pytest.raises(UsageError, match="given"):
            make_directions(parse_directions(text), Around(small()), None)
    with pytest.raises(UsageError, match="seed"):
        make_directions(parse_directions("random:seed=-1"), Around(small()), None)


def test_norms_of_other_libraries_are_norms() -> None:
    """By the name of their class, where they hold scales and shifts only."""

    class LlamaRMSNorm(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(width))

    class Normaliser(LlamaRMSNorm):
        """Has a matrix of its own."""

        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.mix = nn.Parameter(torch.eye(width))

    model = nn.Sequential(nn.Linear(2, 3), LlamaRMSNorm(3), Normaliser(3))
    layout = layout_of(dict(model.named_parameters()))
    left = dict(zip(layout.names, layout.unflatten(ignored(model, layout, "norm")), strict=True))
    assert {name for name, part in left.items() if bool(part.all())} == {"1.weight"}
    assert not any(bool(part.any()) for name, part in left.items() if name != "1.weight")
