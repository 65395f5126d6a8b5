"""Built-in data: one contract for every set, deterministic, no side effects; label noise as promised."""

from __future__ import annotations

import random
import socket
from typing import Any

import numpy as np
import pytest
import torch

from landscape.data import DATA, load_data
from landscape.data.labels import redrawn
from landscape.errors import ProblemError

SHAPES = {"digits": ((64,), (1, 8, 8)), "mnist1d": ((40,), (1, 40))}
SIZES = {"digits": (1438, 359), "mnist1d": (4000, 1000)}


def test_every_data_set_is_tried() -> None:
    # Teachers have a contract of their own, in test_training_stacks.py.
    assert set(SHAPES) == set(SIZES) == set(DATA) - {"teacher"}


@pytest.mark.parametrize("name", SHAPES)
class TestContract:
    def test_shapes_and_types(self, name: str) -> None:
        data = load_data(name, {})
        for (x, y), size in zip((data.train, data.test), SIZES[name], strict=True):
            assert x.shape == (size, *SHAPES[name][0])
            assert x.dtype == torch.float32
            assert y.shape == (size,)
            assert y.dtype == torch.int64
            assert set(y.tolist()) == set(range(data.classes))
        assert data.name == name

    def test_images_are_the_same_numbers(self, name: str) -> None:
        flat, image = load_data(name, {}), load_data(name, {"image": True})
        assert image.train[0].shape[1:] == SHAPES[name][1]
        assert torch.equal(image.train[0].flatten(1), flat.train[0])
        assert torch.equal(image.test[0].flatten(1), flat.test[0])

    def test_onehot_targets(self, name: str) -> None:
        index, onehot = load_data(name, {}), load_data(name, {"targets": "onehot"})
        assert onehot.train[1].dtype == torch.float32
        assert torch.equal(onehot.train[1].argmax(1), index.train[1])
        assert torch.equal(onehot.test[1].sum(1), torch.ones(len(index.test[1])))

    def test_a_smaller_training_set_is_a_part_of_the_larger(self, name: str) -> None:
        small, large = load_data(name, {"train_samples": 100}), load_data(name, {})
        assert torch.equal(small.train[0], large.train[0][:100])
        assert torch.equal(small.test[0], large.test[0])

    def test_label_noise_hits_training_labels_only(self, name: str) -> None:
        clean, noisy = load_data(name, {}), load_data(name, {"label_noise": 0.5})
        wrong = (clean.train[1] != noisy.train[1]).double().mean().item()
        assert abs(wrong - 0.5 * 0.9) < 4 * (0.45 * 0.55 / len(clean.train[1])) ** 0.5
        assert torch.equal(clean.test[1], noisy.test[1])
        assert torch.equal(clean.train[0], noisy.train[0])
        other = load_data(name, {"label_noise": 0.5, "noise_seed": 1})
        assert not torch.equal(noisy.train[1], other.train[1])

    def test_loading_leaves_no_trace(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """No network, no global random numbers; and the arrays handed out are not the cached ones."""

        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError("the network was touched")

        monkeypatch.setattr(socket, "socket", refuse)
        DATA[name]._arrays.cache_clear()
        before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
        data = load_data(name, {})
        assert random.getstate() == before[0]
        assert str(np.random.get_state()) == before[1]  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), before[2])
        data.train[0].zero_()
        data.test[0].zero_()
        data.train[1].zero_()
        data.test[1].zero_()
        again = load_data(name, {})
        assert all(tensor.any() for pair in (again.train, again.test) for tensor in pair)

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"label_noise": 1.5}, "probability"),
            ({"label_noise": "much"}, "finite number"),
            ({"targets": "probabilities"}, "no targets"),
            ({"train_samples": 0}, "train_samples"),
            ({"label_nois": 0.1}, "no setting 'label_nois'"),
            ({"image": 1}, "true or false"),
        ],
    )
    def test_explains_settings_that_cannot_be(self, name: str, settings: dict[str, Any], words: str) -> None:
        with pytest.raises(ProblemError, match=words):
            load_data(name, settings)


def test_digits_lie_between_0_and_1_and_are_split_without_overlap() -> None:
    data, whole = load_data("digits", {}), load_data("digits", {"test_fraction": 0})
    assert data.train[0].min() == 0
    assert data.train[0].max() == 1
    assert len(whole.train[0]) == 1797
    assert len(whole.test[0]) == 0
    rows = torch.cat([data.train[0], data.test[0]])
    assert torch.equal(rows.sort(0).values, whole.train[0].sort(0).values)


def test_digits_split_follows_its_seed() -> None:
    a, b = load_data("digits", {}), load_data("digits", {"split_seed": 1})
    assert not torch.equal(a.test[1], b.test[1])
    with pytest.raises(ProblemError, match="there are 1438"):
        load_data("digits", {"train_samples": 1500})
    with pytest.raises(ProblemError, match="test_fraction"):
        load_data("digits", {"test_fraction": 1.0})


def test_mnist1d_is_the_published_one() -> None:
    """Made by the package itself, with its own defaults."""
    from mnist1d.data import get_dataset_args, make_dataset

    state = np.random.get_state(), random.getstate()  # noqa: NPY002
    made = make_dataset(get_dataset_args())
    np.random.set_state(state[0])  # noqa: NPY002
    random.setstate(state[1])
    data = load_data("mnist1d", {})
    np.testing.assert_array_equal(data.train[0].numpy(), made["x"].astype(np.float32))
    np.testing.assert_array_equal(data.test[1].numpy(), made["y_test"])


@pytest.mark.slow
def test_mnist1d_grows_beyond_the_published_size() -> None:
    assert load_data("mnist1d", {"train_samples": 4321}).train[0].shape == (4321, 40)


def test_noise_adds_to_less_noise() -> None:
    labels = torch.arange(1000) % 10
    some, more = redrawn(labels, 10, 0.2, 0), redrawn(labels, 10, 0.6, 0)
    changed = some != labels
    assert torch.equal(some[changed], more[changed])
    assert torch.equal(redrawn(labels, 10, 0.0, 0), labels)


def test_unknown_data_lists_what_exists() -> None:
    with pytest.raises(ProblemError, match="no built-in data set 'digit'") as raised:
        load_data("digit", {})
    assert raised.value.hint == "did you mean 'digits'? known are digits, mnist1d, teacher"
