"""PEFT adapters: low-rank changes of some layers, beside the base network in a model, or merged into its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import CheckpointError

_PREFIX = "base_model.model."
# Further kinds of adapter, which change more than a product of two matrices says.
_PLAIN = ("use_dora", "lora_bias", "use_qalora", "alora_invocation_tokens")
_RETURN = (
    "return the PEFT model from the problem function, which may take `path`: "
    "peft.get_peft_model(base, peft.PeftConfig.from_pretrained(path)); its adapter's tensors are read into it"
)


def is_peft(model: nn.Module) -> bool:
    """Whether a model has places for an adapter, as `peft.get_peft_model` makes them."""
    return any(".lora_" in name or ".base_layer." in name or "modules_to_save" in name for name in model.state_dict())


def in_place(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter's tensors under the names of a PEFT model, which say the adapter's own name as well, with the model's
    tensors for all others.

    Raises:
        CheckpointError: names of the adapter that the model has no place for.
    """
    own = model.state_dict()
    places: dict[str, str] = {}
    for name in own:
        parts = name.split(".")
        for n in range(1, len(parts)):
            if parts[n - 1].startswith(("lora_", "ia3_")) or parts[n - 1] == "modules_to_save":
                kept = [*parts[: n - (parts[n - 1] == "modules_to_save")], *parts[n + 1 :]]
                places[".".join(kept)] = name
                if parts[n - 1] == "lora_magnitude_vector":  # a module of its own that files call by one name
                    places[".".join(kept[:-1])] = name
    lost = [name for name in state if name not in places and name not in own]
    if lost:
        raise CheckpointError(
            f"the adapter has {len(lost)} tensors that the model has no place for: {', '.join(lost[:5])}",
            "build the adapter as it was: peft.get_peft_model(base, peft.PeftConfig.from_pretrained(path))",
        )
    return {**own, **{places.get(name, name): tensor for name, tensor in state.items()}}


def merged(
    path: str, base: Mapping[str, Tensor], state: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The base network's tensors with the low-rank products added: W + scale B A for each layer.

    Args:
        path: for messages. base: of the whole network. state, config: the adapter's tensors and settings.

    Raises:
        CheckpointError: another kind of adapter, or one of another base.
    """
    further = [kind for kind in _PLAIN if config.get(kind)]
    if config.get("peft_type") != "LORA" or further:
        raise CheckpointError(
            f"{path} is an adapter of the kind {' with '.join([str(config.get('peft_type')), *further])}, "
            "which cannot be merged into a base here",
            _RETURN,
        )
    found = dict(base)
    for name, low in state.items():
        layer, kind, _ = name.removeprefix(_PREFIX).partition(".lora_A")
        embedding = name.removeprefix(_PREFIX).partition(".lora_embedding_A")
        if kind:
            weight, high = f"{layer}.weight", state[name.replace(".lora_A", ".lora_B")]
            change = _product(high, low)
        elif embedding[1]:
            layer = embedding[0]
            weight, high = f"{layer}.weight", state[name.replace(".lora_embedding_A", ".lora_embedding_B")]
            change = (high.double() @ low.double()).T
        elif ".lora_" in name:
            continue
        else:  # a layer that was trained as a whole
            _known(path, name.removeprefix(_PREFIX), found)
            found[name.removeprefix(_PREFIX)] = low
            continue
        _known(path, weight, found)
        change = change.T if config.get("fan_in_fan_out") and change.dim() == 2 and kind else change
        if change.shape != found[weight].shape:
            raise CheckpointError(
                f"{path}: the adapter's {layer} is {tuple(change.shape)}, its base's {tuple(found[weight].shape)}",
                "name the base that it was trained on in adapter_config.json",
            )
        scale = _scale(config, layer, low.shape[0])
        found[weight] = (found[weight].double() + scale * change).to(
            torch.promote_types(found[weight].dtype, torch.float32)
        )
    return found


def _product(high: Tensor, low: Tensor) -> Tensor:
    """B A in float64; of convolutions, B is 1 x 1."""
    if low.dim() == 2:
        return high.double() @ low.double()
    return (high.double().flatten(1) @ low.double().flatten(1)).reshape(high.shape[0], *low.shape[1:])


def _scale(config: Mapping[str, Any], layer: str, rank: int) -> float:
    alpha = config.get("lora_alpha", rank)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?{pattern}", layer):
            alpha = value
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _known(path: str, name: str, base: Mapping[str, Tensor]) -> None:
    if name not in base:
        raise CheckpointError(
            f"{path}: the adapter changes {name}, which its base does not have",
            "name the base that it was trained on in adapter_config.json",
        )


def base_of(path: str, config: Mapping[str, Any]) -> Path:
    """The folder of the base network, as adapter_config.json names it.

    Raises:
        CheckpointError: it is none on this machine.
    """
    named = config.get("base_model_name_or_path")
    for place in (Path(str(named)), Path(path) / str(named)):
        if named and place.is_dir():
            return place
    raise CheckpointError(
        f"{path} is an adapter of {named!r}, which is no folder here, and the model of the problem has no place for it",
        _RETURN,
    )
