"""Tensors into models: names behind wrappers' prefixes, shapes, types, ties; nothing changes on failure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_model
from torch import Tensor, nn

from landscape.checkpoints.checkpoint import Checkpoint, load_into, read_checkpoint
from landscape.errors import CheckpointError


def net(width: int = 5, seed: int = 0) -> nn.Sequential:
    """A small network with a buffer of each kind."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 3))


class Tied(nn.Module):
    """A network with one tensor under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach()), name


def in_memory(state: Mapping[str, Tensor]) -> Checkpoint:
    return Checkpoint("memory.pt", "0", "state_dict", dict(state), {}, {})


# ---- into a model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "model.net.module.", "module.module."],
)
def test_prefixes_are_stripped_with_a_note(prefix: str) -> None:
    source, model = net(seed=1), net(seed=2)
    notes = load_into(model, in_memory({prefix + k: v for k, v in source.state_dict().items()}))
    assert_same(model.state_dict(), source.state_dict())
    assert bool(notes) == bool(prefix)


def test_real_wrappers() -> None:
    source = net(seed=1)
    model = net(seed=2)
    load_into(model, in_memory(nn.DataParallel(source).state_dict()))
    assert_same(model.state_dict(), source.state_dict())
    compiled = torch.compile(source)
    model = net(seed=2)
    load_into(model, in_memory(compiled.state_dict()))
    assert_same(model.state_dict(), source.state_dict())
    partly = nn.ModuleDict({"a": net(seed=1)})
    state = {k.replace("a.", "a._orig_mod."): v for k, v in partly.state_dict().items()}
    model_partly = nn.ModuleDict({"a": net(seed=2)})
    load_into(model_partly, in_memory(state))
    assert_same(model_partly.state_dict(), partly.state_dict())
    other = torch.compile(net(seed=2))
    load_into(other, in_memory(source.state_dict()))  # type: ignore[arg-type]
    assert torch.equal(other.state_dict()["_orig_mod.0.weight"], source.state_dict()["0.weight"])


def test_names_that_are_prefixes_themselves_are_kept() -> None:
    model, source = nn.ModuleDict({"net": net(seed=2)}), nn.ModuleDict({"net": net(seed=1)})
    assert load_into(model, in_memory(source.state_dict())) == ()
    notes = load_into(model, in_memory({f"model.{k}": v for k, v in source.state_dict().items()}))
    assert notes == ("prefix model. stripped from names",)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def edited(**changes: Tensor | None) -> dict[str, Tensor]:
    state = dict(net(seed=1).state_dict())
    for name, value in changes.items():
        key = name.replace("_at_", ".")
        if value is None:
            del state[key]
        else:
            state[key] = value
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (edited(**{"3_at_bias": None}), r"missing: 3\.bias"),
        (edited(**{"9_at_bias": torch.ones(3)}), r"unexpected: 9\.bias"),
        ({f"layers.{i}.weight": torch.ones(2) for i in range(12)}, "no name agrees.* and 4 more"),
        (dict(net(width=9).state_dict()), r"the checkpoint has width 9 where the model has 5"),
        (edited(**{"3_at_bias": torch.ones(3, dtype=torch.int64)}), r"numbers of another kind: 3\.bias"),
    ],
)
def test_misfits_are_listed_and_leave_the_model_alone(state: dict[str, Tensor], message: str) -> None:
    model = net(seed=2)
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=message):
        load_into(model, in_memory(state))
    assert_same(model.state_dict(), before)


def test_batch_counters_may_be_missing() -> None:
    notes = load_into(net(seed=2), in_memory(edited(**{"1_at_num_batches_tracked": None})))
    assert "batch counters" in notes[0]


@pytest.mark.parametrize(
    ("stored", "used"),
    [(torch.float64, torch.float64), (torch.float16, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_the_model_takes_the_checkpoints_type(tmp_path: Path, stored: torch.dtype, used: torch.dtype) -> None:
    source = net(seed=1).to(stored)
    torch.save(source.state_dict(), tmp_path / "c.pt")
    found = read_checkpoint(tmp_path / "c.pt")
    assert any("used in float32" in note for note in found.notes) == (stored != used)
    model = net(seed=2)
    model.register_buffer("extra", torch.ones(2), persistent=False)
    identities = [id(p) for p in model.parameters()]
    load_into(model, found)
    assert {t.dtype for t in (*model.parameters(), *model.buffers())} == {used, torch.int64}
    assert [id(p) for p in model.parameters()] == identities
    assert torch.equal(model[3].weight, source[3].weight.to(used))  # type: ignore[arg-type]


def test_ties_in_either_direction(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = Tied()
    save_model(source, str(tmp_path / "c.safetensors"))  # drops one of the two names
    model = Tied()
    load_into(model, read_checkpoint(tmp_path / "c.safetensors"))
    assert torch.equal(model.embed.weight, source.embed.weight)
    assert model.head.weight is model.embed.weight
    load_into(model, in_memory({"embed.weight": source.embed.weight.detach()}))
    untied = Tied()
    untied.head.weight = nn.Parameter(torch.zeros(7, 4))
    load_into(untied, read_checkpoint(tmp_path / "c.safetensors"))
    assert torch.equal(untied.head.weight, source.embed.weight)
    with pytest.raises(CheckpointError, match=r"ties embed\.weight and head\.weight, but they differ"):
        load_into(model, in_memory({"embed.weight": torch.zeros(7, 4), "head.weight": torch.ones(7, 4)}))


def test_models_without_memory_are_refused() -> None:
    checkpoint = in_memory(net().state_dict())
    with torch.device("meta"):
        on_meta = net()
    with pytest.raises(CheckpointError, match="no memory yet"):
        load_into(on_meta, checkpoint)
    with pytest.raises(CheckpointError, match="no memory yet"):
        load_into(nn.LazyLinear(3), checkpoint)


names = st.lists(st.sampled_from(["module", "model", "net", "_orig_mod", "a", "b", "weight"]), min_size=1, max_size=4)


@settings(deadline=None, max_examples=150)
@given(
    ours=st.lists(names.map(".".join), min_size=1, max_size=4, unique=True),
    prefix=st.lists(st.sampled_from(["module.", "model.", "net.", "_orig_mod."]), max_size=3).map("".join),
)
def test_any_names_behind_any_prefixes_are_found(ours: list[str], prefix: str) -> None:
    class Flat(nn.Module):
        """Only names count here."""

        def __init__(self) -> None:
            super().__init__()
            self.table = {name: torch.zeros(1) for name in ours}

        def named_buffers(self, *_args: Any, **_kwargs: Any) -> Iterator[tuple[str, Tensor]]:
            yield from self.table.items()

        def state_dict(self, *_args: Any, **_kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
            return self.table

        def load_state_dict(self, state: Mapping[str, Tensor], *_args: Any, **_kwargs: Any) -> None:  # type: ignore[override]
            assert set(state) == set(self.table)
            for name, tensor in state.items():
                self.table[name].copy_(tensor)

    model = Flat()
    state = {prefix + name: torch.full((1,), float(index + 1)) for index, name in enumerate(ours)}
    load_into(model, in_memory(state))
    assert [float(t) for t in model.table.values()] == [float(i + 1) for i in range(len(ours))]


def test_models_whose_state_is_made_by_a_hook_are_refused() -> None:
    model = net()
    model.register_state_dict_post_hook(
        lambda _module, state, prefix, _meta: state.update({prefix + "x": torch.ones(1)})
    )
    with pytest.raises(CheckpointError, match="a hook made it"):
        load_into(model, in_memory(net().state_dict()))


# ---- through the model's own load_state_dict ------------------------------------------------------------------------


class Renamed(nn.Linear):
    """Was called `lin` once, and says so itself; stored transposed then."""

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:  # type: ignore[override]
        if prefix + "lin" in state:
            state[prefix + "weight"] = state.pop(prefix + "lin").T
        super()._load_from_state_dict(state, prefix, *rest)  # type: ignore[arg-type]


def test_old_weight_norm_goes_into_new_parametrisations() -> None:
    with pytest.warns(FutureWarning):
        old = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 5)), nn.Linear(5, 3))
    new = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Linear(5, 3))
    inputs = torch.randn(6, 4)
    for prefix in ("", "module."):
        notes = load_into(new, in_memory({prefix + k: v for k, v in old.state_dict().items()}))
        assert torch.allclose(new(inputs), old(inputs))
        assert any("converted by the model's own load_state_dict" in note for note in notes)
    with pytest.raises(CheckpointError, match=r"missing: 1\.bias$"):
        load_into(new, in_memory({k: v for k, v in old.state_dict().items() if k != "1.bias"}))


def test_a_model_may_rename_and_convert_by_itself() -> None:
    model = nn.Sequential(Renamed(4, 5), nn.Linear(5, 3))
    state = dict(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).state_dict())
    weight = state.pop("0.weight")
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=r"missing: 0\.weight; unexpected: 0\.lin"):
        load_into(model, in_memory({**state, "0.lin": torch.zeros(3, 3)}))
    assert_same(model.state_dict(), before)
    load_into(model, in_memory({**state, "0.lin": weight.T}))
    assert torch.equal(model[0].weight, weight)  # type: ignore[arg-type]


def test_a_model_that_leaves_out_what_it_has_a_place_for_is_refused() -> None:
    class Forgets(nn.Linear):
        def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:  # type: ignore[override]
            state.pop(prefix + "bias")
            super()._load_from_state_dict(state, prefix, *rest)  # type: ignore[arg-type]

    model = Forgets(4, 5)
    before = snapshot(model)
    with pytest.raises(CheckpointError, match="says its own load_state_dict: it leaves out bias"):
        load_into(model, in_memory(nn.Linear(4, 5).state_dict()))
    assert_same(model.state_dict(), before)


def averaged(source: nn.Module) -> dict[str, Tensor]:
    return dict(torch.optim.swa_utils.AveragedModel(source).state_dict())


WRAPPERS: dict[str, Any] = {
    "swa": averaged,
    "lightning": lambda m: {
        **{f"model.{k}": v for k, v in m.state_dict().items()},
        "criterion.weight": torch.ones(3),
        "train_acc.total": torch.zeros(()),
    },
    "fsdp": lambda m: {f"_fsdp_wrapped_module.{k}": v for k, v in m.state_dict().items()},
    "fsdp of layers": lambda m: {k.replace(".", "._fsdp_wrapped_module.", 1): v for k, v in m.state_dict().items()},
    "checkpointed": lambda m: {k.replace(".", "._checkpoint_wrapped_module.", 1): v for k, v in m.state_dict().items()},
    "backbone": lambda m: {f"backbone.{k}": v for k, v in m.state_dict().items()},
    "any one": lambda m: {f"whatever.{k}": v for k, v in m.state_dict().items()},
    "compiled ddp": lambda m: {f"_orig_mod.module.{k}": v for k, v in m.state_dict().items()},
    "step": lambda m: {**m.state_dict(), "step": torch.tensor(7)},
    "timm ema": lambda m: {**m.state_dict(), "decay": torch.tensor(0.999), "num_updates": torch.tensor(3)},
    "half": lambda m: {k: v.half() for k, v in m.state_dict().items()},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_wrappers_add_does_no_harm(wrapper: str) -> None:
    source, model = net(seed=1), net(seed=2)
    source[0].weight.data.copy_(source[0].weight.data.half())  # type: ignore[union-attr, operator]
    load_into(model, in_memory(WRAPPERS[wrapper](source)))
    assert torch.equal(model[0].weight, source[0].weight)  # type: ignore[arg-type]
    assert model[1].num_batches_tracked.dtype == torch.int64  # type: ignore[union-attr]


def test_a_learnt_scalar_is_no_counter() -> None:
    for name, value in (("step", torch.tensor(0.3)), ("decay", torch.tensor(0.9)), ("a.b.step", torch.tensor(3))):
        with pytest.raises(CheckpointError, match=f"unexpected: {name}"):
            load_into(net(), in_memory({**net().state_dict(), name: value}))


def test_names_are_put_into_the_models_wrapper() -> None:
    model = nn.ModuleDict({"backbone": net(seed=2)})
    notes = load_into(model, in_memory(net(seed=1).state_dict()))
    assert notes == ("prefix backbone. put before names",)
    assert_same(model["backbone"].state_dict(), net(seed=1).state_dict())


def test_hints_of_misfits_name_what_works(tmp_path: Path) -> None:
    state = {f"ema_model.{k}": v for k, v in net(seed=1).state_dict().items()}
    state |= {f"online_model.{k}": v for k, v in net(seed=2).state_dict().items()} | {"initted": torch.tensor(True)}
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(CheckpointError) as caught:
        load_into(net(), read_checkpoint(tmp_path / "c.pt"))
    assert (caught.value.hint or "").endswith("add --key ema_model")
    model = net(seed=5)
    load_into(model, read_checkpoint(tmp_path / "c.pt", key="ema_model"))
    assert_same(model.state_dict(), net(seed=1).state_dict())
