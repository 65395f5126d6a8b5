"""The settings of the run that a checkpoint came from: from inside the file, or from a file beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from landscape.errors import CheckpointError

# In the checkpoint's folder first, then in those above it.
BESIDE = ("config.yaml", "config.yml", "config.json", "hparams.yaml", "params.json", ".hydra/config.yaml", "args.json")
PARENTS = 2
LARGEST = 1 << 22
_WANDB = ("_wandb", "wandb_version")


class Config(dict[str, Any]):
    """Settings by name or as attributes, as deep as they go: config["model"]["width"] is config.model.width."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__({str(name): _deep(value) for name, value in values.items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the run's config has no {name!r}; it has {', '.join(self) or 'nothing'}") from None

    def __missing__(self, name: str) -> Any:
        raise KeyError(f"the run's config has no {name!r}; it has {', '.join(self) or 'nothing'}")


def _resolved(value: Any, root: Mapping[str, Any], depth: int = 0) -> Any:
    """Settings with OmegaConf's ${a.b} as what they point to; other interpolations stay as they are."""
    if isinstance(value, Mapping):
        return {name: _resolved(inner, root, depth) for name, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(inner, root, depth) for inner in value]
    pointer = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) and depth < 8 else None
    if pointer is None:
        return value
    found: Any = root
    for name in pointer[1].split("."):
        if not isinstance(found, Mapping) or name not in found:
            return value
        found = found[name]
    return _resolved(found, root, depth + 1)


def _deep(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Config(value)
    return [_deep(item) for item in value] if isinstance(value, list | tuple) else value


def run_config(path: Path, inside: tuple[str, Mapping[str, Any]] | None) -> tuple[Config, str] | None:
    """The settings and where they are from; those in the file first, then the nearest beside it; None without any.

    Args:
        path: of the checkpoint, a file or a folder. inside: what the file holds, and under which key.

    Raises:
        CheckpointError: a file beside the checkpoint that cannot be read.
    """
    if inside is not None:
        return Config(_resolved(inside[1], inside[1])), f"under {inside[0]!r} in the file"
    folders = [path, *path.parents] if path.is_dir() else [*path.absolute().parents]
    for folder in folders[: PARENTS + 1]:
        for name in BESIDE:
            if (file := folder / name).is_file():
                values = _read(file)
                return Config(_resolved(values, values)), str(file)
    return None


def _read(file: Path) -> Mapping[str, Any]:
    """The mapping in a JSON or YAML file; W&B's {name: {value: …}} as {name: …}. Raises CheckpointError."""
    try:
        if file.stat().st_size > LARGEST:
            raise ValueError("it is too large for settings")
        text = file.read_text("utf-8")
        found = json.loads(text) if file.suffix == ".json" else read_yaml(text)
        if not isinstance(found, Mapping):
            raise ValueError("it holds no names and values")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file}, the settings of this run, cannot be read: {error}",
            "mend it, or take `config` out of the problem function",
        ) from error
    own = {name: value for name, value in found.items() if name not in _WANDB}
    if own and all(isinstance(value, Mapping) and "value" in value for value in own.values()):
        return {name: value["value"] for name, value in own.items()}
    return found


# ---- YAML -----------------------------------------------------------------------------------------------------------


def read_yaml(text: str) -> Any:
    """YAML by PyYAML where it is installed; else the part of YAML that settings are written in.

    Objects of Python (`!!python/…`) are read as None, and never made.

    Raises:
        ValueError: it is not YAML, or needs PyYAML.
    """
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError:
        return _Lines(text).block(-1)

    class Plain(yaml.SafeLoader):  # type: ignore[misc]
        """Unknown tags are nothing, instead of an error."""

    Plain.add_multi_constructor("", lambda loader, suffix, node: None)
    try:
        return yaml.load(text, Plain)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error


class _Lines:
    """Block mappings and lists of scalars, and flow lists and mappings on one line."""

    def __init__(self, text: str) -> None:
        kept = ((len(line) - len(line.lstrip(" ")), line.strip()) for line in text.splitlines())
        self.lines = [(indent, line) for indent, line in kept if line and line[0] != "#" and line != "---"]
        self.at = 0

    def block(self, above: int) -> Any:
        """What is indented deeper than `above`. Raises ValueError."""
        if self.at == len(self.lines) or self.lines[self.at][0] <= above:
            return None
        indent, first = self.lines[self.at]
        found: Any = [] if first.startswith("- ") or first == "-" else {}
        while self.at < len(self.lines) and self.lines[self.at][0] == indent:
            line = self.lines[self.at][1]
            self.at += 1
            if isinstance(found, list):
                if not line.startswith("- ") or re.match(r"- +(-|[\w.]+:( |$))", line):
                    raise ValueError(f"{line[:60]!r} needs PyYAML (pip install pyyaml)")
                found.append(_scalar(line[2:]))
                continue
            match = re.fullmatch(r"""(["']?)([\w./ -]+)\1 *:(?: +(.*))?""", line)
            if match is None:
                raise ValueError(f"{line[:60]!r} needs PyYAML (pip install pyyaml)")
            value = re.sub(r"^#.*", "", match[3] or "")
            same = (
                self.at < len(self.lines) and self.lines[self.at] >= (indent, "- ") and self.lines[self.at][1][0] == "-"
            )
            deeper = self.block(indent - 1 if same and self.lines[self.at][0] == indent else indent)
            found[match[2]] = _scalar(value) if value else deeper
        if self.at < len(self.lines) and self.lines[self.at][0] > indent:
            raise ValueError(f"{self.lines[self.at][1][:60]!r} needs PyYAML (pip install pyyaml)")
        return found


def _scalar(text: str) -> Any:
    text = text.strip()
    if text[:1] in "\"'":
        quoted = re.fullmatch(r"""(['"])(.*)\1(?: +#.*)?""", text)
        if quoted is None:
            raise ValueError(f"{text[:60]!r} needs PyYAML (pip install pyyaml)")
        return quoted[2]
    text = re.sub(r" +#.*", "", text).strip()
    if text[:1] in "[{":
        if not re.fullmatch(r"\[[^\[\]{}]*\]|\{[^\[\]{}]*\}", text):
            raise ValueError(f"{text[:60]!r} needs PyYAML (pip install pyyaml)")
        items = [item.strip() for item in text[1:-1].split(",") if item.strip()]
        if text[0] == "[":
            return [_scalar(item) for item in items]
        pairs = [item.partition(":") for item in items]
        return {name.strip(): _scalar(value) for name, _, value in pairs}
    if text[:1] in "!&*|>%@`":
        raise ValueError(f"{text[:60]!r} needs PyYAML (pip install pyyaml)")
    words = {"": None, "null": None, "~": None, "true": True, "false": False, "yes": True, "no": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        if re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", text, re.IGNORECASE):
            try:
                return kind(text)
            except ValueError:
                continue
    return text
