"""Built-in models: one contract for every family, reproducible from the seed alone, every mistake explained."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from landscape.errors import ProblemError
from landscape.models import MODELS, build_model, settings_for
from landscape.models.activations import ACTIVATIONS

# One small network of every family; a new one fails `test_every_family_is_tried` until it is added here.
SAMPLES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "mlp": ((6,), {"width": 5, "depth": 2}),
    "cnn": ((1, 8, 8), {"width": 3, "batch_norm": True}),
}


def sample(name: str, **changes: Any) -> dict[str, Any]:
    shape, settings = SAMPLES[name]
    return {**settings_for(name, shape, 4), **settings, **changes}


def test_every_family_is_tried() -> None:
    assert set(SAMPLES) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
class TestContract:
    def test_maps_a_batch_to_one_row_of_outputs_each(self, name: str) -> None:
        inputs = torch.randn(7, *SAMPLES[name][0], generator=torch.Generator().manual_seed(0))
        model = build_model(name, sample(name))
        assert model(inputs).shape == (7, 4)
        assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())

    def test_is_a_plain_sequence_of_layers(self, name: str) -> None:
        model = build_model(name, sample(name))
        assert isinstance(model, nn.Sequential)
        assert all(key.split(".")[0].isdigit() for key in model.state_dict())

    def test_follows_from_the_seed_alone(self, name: str) -> None:
        torch.rand(3)  # wherever the global generator is
        first = build_model(name, sample(name), seed=3).state_dict()
        second = build_model(name, sample(name), seed=3).state_dict()
        other = build_model(name, sample(name), seed=4).state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert any(not torch.equal(first[key], other[key]) for key in first)

    def test_leaves_the_global_generator_alone(self, name: str) -> None:
        before = torch.get_rng_state()
        build_model(name, sample(name), seed=3)
        assert torch.equal(torch.get_rng_state(), before)

    def test_is_initialised_as_pytorch_does_by_default(self, name: str) -> None:
        """The constructors under `manual_seed`, as users write it, give the same weights."""
        built = build_model(name, sample(name), seed=5)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            for layer in built:
                before = {k: v.clone() for k, v in layer.state_dict().items()}
                if hasattr(layer, "reset_parameters"):
                    layer.reset_parameters()
                assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_knows_every_activation(self, name: str, activation: str) -> None:
        inputs = torch.randn(3, *SAMPLES[name][0], generator=torch.Generator().manual_seed(0))
        assert build_model(name, sample(name, activation=activation))(inputs).isfinite().all()

    def test_names_the_nearest_setting(self, name: str) -> None:
        with pytest.raises(ProblemError, match="no setting 'activaton'") as raised:
            build_model(name, sample(name, activaton="tanh"))
        assert "did you mean 'activation'" in (raised.value.hint or "")

    @pytest.mark.parametrize("width", [0, -1, True, 2.0, "8", None, [8]])
    def test_refuses_a_width_that_is_none(self, name: str, width: Any) -> None:
        with pytest.raises(ProblemError, match="width"):
            build_model(name, sample(name, width=width))

    def test_lists_what_it_needs(self, name: str) -> None:
        with pytest.raises(ProblemError, match="needs the setting"):
            build_model(name, {})


@given(
    width=st.integers(1, 9),
    depth=st.integers(0, 4),
    inputs=st.integers(1, 6),
    outputs=st.integers(1, 5),
    bias=st.booleans(),
)
def test_mlp_has_the_parameters_that_its_shape_says(
    width: int, depth: int, inputs: int, outputs: int, bias: bool
) -> None:
    model = build_model("mlp", {"inputs": inputs, "outputs": outputs, "width": width, "depth": depth, "bias": bias})
    sizes = [inputs, *[width] * depth, outputs]
    expected = sum(a * b + (b if bias else 0) for a, b in itertools.pairwise(sizes))
    assert sum(p.numel() for p in model.parameters()) == expected


def test_cnn_takes_sequences_too() -> None:
    model = build_model("cnn", {**settings_for("cnn", (1, 40), 10), "width": 4, "batch_norm": True})
    assert model(torch.zeros(2, 1, 40)).shape == (2, 10)
    assert {m.__class__.__name__ for m in model} >= {"Conv1d", "BatchNorm1d"}


def test_cnn_without_batch_norm_has_biases() -> None:
    assert not any("running_mean" in key for key in build_model("cnn", sample("cnn", batch_norm=False)).state_dict())
    assert "0.bias" in build_model("cnn", sample("cnn", batch_norm=False)).state_dict()
    assert "0.bias" not in build_model("cnn", sample("cnn")).state_dict()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": 4}, "to nothing"),
        ({"kernel": 2}, "must be odd"),
        ({"inputs": [8]}, "channels, height, width"),
        ({"inputs": [1, 8.0, 8]}, "list of integers"),
    ],
)
def test_cnn_explains_settings_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ProblemError, match=words):
        build_model("cnn", sample("cnn", **changes))


def test_unknown_names_list_what_exists() -> None:
    with pytest.raises(ProblemError, match="no built-in model 'mpl'") as raised:
        build_model("mpl", {})
    assert "did you mean 'mlp'? known are mlp, cnn" in (raised.value.hint or "")
    with pytest.raises(ProblemError, match="no activation 'tan'"):
        build_model("mlp", sample("mlp", activation="tan"))


def test_models_refuse_samples_of_the_wrong_shape() -> None:
    with pytest.raises(ProblemError, match="flat inputs"):
        settings_for("mlp", (1, 8, 8), 10)
    with pytest.raises(ProblemError, match="takes images") as raised:
        settings_for("cnn", (64,), 10)
    assert "image = true" in (raised.value.hint or "")


@pytest.mark.parametrize("depth", [1, 2])
def test_ntk_outputs_keep_their_size_and_mean_field_outputs_vanish(depth: int) -> None:
    """At initialisation: O(1) for every width in NTK parametrisation, O(1/√width) in the mean field's."""
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    sizes: dict[str, list[float]] = {}
    for name in ("ntk", "mean_field"):
        for width in (64, 1024):
            settings = {"inputs": 5, "outputs": 1, "width": width, "depth": depth, "parametrisation": name}
            draws = [build_model("mlp", settings, seed)(x).detach().square().mean() for seed in range(20)]
            sizes.setdefault(name, []).append(float(torch.stack(draws).mean().sqrt()))
    assert sizes["ntk"][1] == pytest.approx(sizes["ntk"][0], rel=0.4)
    assert sizes["mean_field"][1] == pytest.approx(sizes["mean_field"][0] / 4, rel=0.4)


def test_the_default_parametrisation_is_not_written_into_headers() -> None:
    from landscape.models.mlp import Settings
    from landscape.settings import written

    assert "parametrisation" not in written(Settings(2, 1, 3))
    assert written(Settings(2, 1, 3, parametrisation="ntk"))["parametrisation"] == "ntk"


@pytest.mark.parametrize(("name", "scale"), [("default", 1.0), ("ntk", 1.0), ("mean_field", 7.0)])
def test_mean_field_learning_rates_grow_with_the_width(name: str, scale: float) -> None:
    from landscape.models import learning_rate_scale, mlp

    assert learning_rate_scale("mlp", mlp.Settings(2, 1, 7, parametrisation=name)) == scale
