"""Where a checkpoint lies in its sweep (width, seed, step …): from its header, its path, or a file beside it.

What cannot be read with certainty is left out: a missing coordinate is seen at once, a wrong one is not.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

Value = int | float | str

ALIASES = {"w": "width", "s": "seed"}
# Read from names without an equals sign, such as width64-seed3 or lr_0.1.
WHOLE_NUMBERS = ("width", "seed", "depth", "step", "epoch")
FRACTIONS = ("lr",)
# Taken from a whole configuration file, where most entries are no coordinates of a sweep.
FROM_CONFIG = ("width", "depth", "seed", "lr", "learning_rate", "batch_size", "weight_decay")
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".pt2", ".pkl", ".tar", ".h5")
SIDECARS = (".hydra/overrides.yaml", ".hydra/config.yaml", "hparams.yaml", "params.json")
PARENTS = 2  # folders above the checkpoint's own in which a sidecar is looked for
LARGEST_SIDECAR = 1 << 20

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_KEY = r"[A-Za-z][A-Za-z0-9_.]*"
BRACKETS = "[](){}"
NESTING = 4  # brackets within brackets that are followed
_PLAIN = rf"[^{re.escape(BRACKETS)}]"
_BRACKETED = r"[\[({](?:" + _PLAIN + r")*[\])}]"
for _ in range(NESTING - 1):
    _BRACKETED = r"[\[({](?:" + _PLAIN + "|" + _BRACKETED + r")*[\])}]"
# key=number or key=[list], or key=text up to a comma, a blank or the next key=. A number ends where a word may begin:
# the 2024 of date=2024-01-01 is not one. Nothing within brackets ends a value, and what is cut within them is none.
_PAIR = re.compile(
    rf"(?<![A-Za-z0-9=])(?P<key>{_KEY}?)="
    rf"(?:(?P<whole>{_NUMBER}|{_BRACKETED})(?=$|[,;+ ]|[-_.][A-Za-z])"
    rf"|(?P<text>(?:[^,;= {re.escape(BRACKETS)}]|{_BRACKETED})*?)(?=$|[,; ]|[-_]{_KEY}=))"
)
_DATE = re.compile(r"(?<!\d)\d{1,4}([-_.])\d{2}\1\d{2}(?!\d)")
_WORD = re.compile(
    rf"(?<![A-Za-z0-9])(?:(?P<whole>{'|'.join(WHOLE_NUMBERS)})[-_]?(?P<integer>\d+)"
    rf"|(?P<fraction>{'|'.join(FRACTIONS)})[-_]?(?P<float>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?))"
    r"(?![A-Za-z0-9]|\.\d)",
    re.IGNORECASE,
)
# Folders of the Hugging Face trainer and of DeepSpeed, which are named by the step.
_SAVED = re.compile(r"checkpoint-(?P<hf>\d+)|global_step(?P<ds>\d+)")
# Folders of Ray Tune: trainable, hexadecimal id, number, then index_key=value,…, then date and time.
_RAY = re.compile(
    r"(?P<head>.*?_(?:[0-9a-f]{5,8}_)?\d{5}_\d+)_(?P<tag>[^=]+=.*?)"
    r"(?:_\d{4}-\d{2}-\d{2}_\d{2}-\d{2}-\d{2}[a-z0-9_]{0,8})?"
)
RAY_LONGEST = 128  # Ray cuts names at 130, the underscore between the parts included
_LETTER = re.compile(r"(?<![A-Za-z0-9])(?P<key>[ws])(?P<integer>\d+)(?![A-Za-z0-9]|\.\d)", re.IGNORECASE)


def coordinates_of(
    path: str | PurePath, header: Mapping[str, Any], root: str | PurePath | None = None
) -> dict[str, Value]:
    """Coordinates of the checkpoint `path`; the header's win over the path's, the path's over a sidecar's.

    Args:
        path: as the user wrote it; read as text, and the folders near it for a Hydra or Lightning sidecar.
        header: the checkpoint's own header, {} for foreign files.
        root: only what lies below this folder is read from the path; the whole path without it.
    """
    return _from_sidecar(Path(path)) | _from_path(PurePath(path), root) | _from_header(header)


def words_of(path: str | PurePath, coordinates: Mapping[str, Any]) -> dict[str, str]:
    """Those of the coordinates that are the path's, in its own letters: 007 may be a number or a name."""
    spelt = {k: str(v) for k, v in _from_path(PurePath(path), None, read=str).items()}
    return {k: word for k, word in spelt.items() if k in coordinates and _value(word) == coordinates[k]}


def _from_header(header: Mapping[str, Any]) -> dict[str, Value]:
    given = header.get("coordinates")
    if not isinstance(given, Mapping):
        return {}
    return {str(k): v for k, v in given.items() if isinstance(v, int | float | str)}


def _from_path(
    path: PurePath, root: str | PurePath | None, read: Callable[[str], Value] | None = None
) -> dict[str, Value]:
    read = read or _value
    if root is not None and path.is_relative_to(root):
        path = path.relative_to(root)
    parts = [part for part in path.parts if part != path.anchor]
    if not parts:
        return {}
    for suffix in SUFFIXES:
        if parts[-1].lower().endswith(suffix):
            parts[-1] = parts[-1][: -len(suffix)]
            break
    found: dict[str, Value] = {}
    for number, part in enumerate(parts):
        near = _names(parts[number - 1], read) if number else {}
        found |= _names(part, read, width_is_near="width" in near)
    return found


def _names(text: str, read: Callable[[str], Value], width_is_near: bool = False) -> dict[str, Value]:
    """Coordinates in one part of a path; key=value pairs win over what is read without an equals sign."""
    if ray := _RAY.fullmatch(text):
        return _of_trial(ray["tag"], ray["head"], read)
    pairs: list[tuple[str, Value]] = []
    rest: list[str] = []
    end = 0
    for match in _PAIR.finditer(text):
        rest.append(text[end : match.start()])
        end = match.end()
        value = read(match["whole"] if match["whole"] is not None else match["text"])
        if value != "":
            pairs.append((match["key"], value))
    rest.append(text[end:])
    loose = _loose(_DATE.sub(" ", " ".join(rest)), read, width_is_near or "width" in dict(_shortened(pairs)))
    return loose | dict(_shortened(pairs))


def _of_trial(tag: str, head: str, read: Callable[[str], Value]) -> dict[str, Value]:
    """Coordinates in the name of a Ray Tune trial. Ray rounds numbers to four places there, puts an underscore for
    whatever it thinks odd in a text, and cuts long names: what may have changed is in params.json, or nowhere."""
    pairs = [pair.partition("=") for pair in tag.split(",")]
    if len(head) + len(tag) >= RAY_LONGEST:
        pairs = pairs[:-1]
    kept = [
        (k, v) for k, equals, v in pairs if equals and re.fullmatch(_KEY, k) and v and not {*"._", *BRACKETS} & set(v)
    ]
    return {ALIASES.get(key, key): read(value) for key, value in kept}


def _loose(text: str, read: Callable[[str], Value], width_is_known: bool) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for match in _WORD.finditer(text):
        key, number = match["whole"] or match["fraction"], match["integer"] or match["float"]
        found[key.lower()] = read(number)
    if saved := _SAVED.fullmatch(text.strip()):
        found["step"] = read(saved["hf"] or saved["ds"])
    for match in _LETTER.finditer(text):
        key = ALIASES[match["key"].lower()]
        # An s3 alone is a storage service more often than a seed; beside a width it is not.
        if key not in found and (key == "width" or width_is_known or "width" in found):
            found[key] = read(match["integer"])
    return found


def _value(text: str) -> Value:
    """The number that a text spells, or else the text itself."""
    if re.fullmatch(r"[+-]?\d{1,18}", text):
        return int(text)
    if re.fullmatch(_NUMBER, text) and math.isfinite(float(text)):
        return float(text)
    return text


def _shortened(pairs: list[tuple[str, Value]]) -> Iterator[tuple[str, Value]]:
    """Keys without their dotted prefix where that is unique (model.width -> width), and without abbreviation."""
    last = [key.rsplit(".", 1)[-1] for key, _ in pairs]
    for (key, value), short in zip(pairs, last, strict=True):
        unique = len({k for k, s in zip((k for k, _ in pairs), last, strict=True) if s == short}) == 1
        name = short if unique and short else key
        yield ALIASES.get(name, name), value


def _from_sidecar(path: Path) -> dict[str, Value]:
    """Coordinates from the nearest folder that has a sidecar; Hydra's overrides are what its sweep varied."""
    for folder in [*path.absolute().parents][: PARENTS + 1]:
        found: dict[str, Value] = {}
        for name in reversed(SIDECARS):
            json_file = name.endswith(".json")
            pairs = list((_json_scalars if json_file else _yaml_scalars)(_read(folder / name)))
            if json_file and (ray := _RAY.fullmatch(folder.name)):
                varied = [pair.partition("=")[0] for pair in ray["tag"].split(",")]
                found |= {k: v for k, v in _shortened(pairs) if k.rpartition(".")[2] in (*varied, *FROM_CONFIG)}
            elif name.endswith("overrides.yaml"):
                found |= dict(_shortened([*_overrides(pairs)]))
            else:
                named = [(k, v) for k, v in pairs if k.rsplit(".", 1)[-1] in FROM_CONFIG]
                found |= {k: v for k, v in _shortened(named) if k in FROM_CONFIG}
        if found:
            return found
    return {}


def _read(path: Path) -> str:
    """Text of a sidecar; "" where there is none that can be read, since it is only ever a help."""
    try:
        if path.stat().st_size > LARGEST_SIDECAR:
            return ""
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _yaml_scalars(text: str) -> Iterator[tuple[str, Value]]:
    """(dotted key, scalar) for `key: value` lines, ("", text) for `- text` lines; all other YAML is skipped."""
    above: list[tuple[int, str]] = []  # indentation and key of the mappings that we are in
    inside = math.inf  # indentation of a list item or value; deeper lines belong to it
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip(" "))
        if not line.strip() or line.lstrip().startswith("#") or indent > inside:
            continue
        inside = math.inf
        if line.lstrip().startswith("-"):
            inside = indent
            if item := re.fullmatch(r"- *([^\s-].*)", line.rstrip()):
                yield "", _unquoted(item[1])
            continue
        match = re.fullmatch(r" *([A-Za-z_][\w.-]*) *:(?: +(\S.*))?", line.rstrip())
        while above and above[-1][0] >= indent:
            above.pop()
        value = match[2] or "" if match else "?"
        if match and (not value or value.startswith("#")):
            above.append((indent, match[1]))
            continue
        inside = indent
        if match and (scalar := _scalar(value)) is not None:
            yield ".".join([*(k for _, k in above), match[1]]), scalar


def _json_scalars(text: str) -> Iterator[tuple[str, Value]]:
    """(dotted key, scalar) of a JSON object, at any depth; nothing of what is none."""

    def below(value: Any, keys: tuple[str, ...]) -> Iterator[tuple[str, Value]]:
        if isinstance(value, dict) and len(keys) < 8:
            for key, inner in value.items():
                yield from below(inner, (*keys, key))
        elif isinstance(value, int | float | str) and keys and value == value and value not in (math.inf, -math.inf):
            yield ".".join(keys).replace("/", "."), str(value) if isinstance(value, bool) else value

    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return
    if isinstance(found, dict):
        yield from below(found, ())


def _unquoted(text: str) -> str:
    quoted = re.fullmatch(r"""(['"])(.*)\1(?:\s+#.*)?""", text.strip())
    return quoted[2] if quoted else re.sub(r"\s+#.*", "", text.strip())


def _scalar(text: str) -> Value | None:
    """The value of a YAML scalar; None for what is none (null, lists, tags, anchors, blocks)."""
    plain = _unquoted(text)
    if plain.lower() in ("", "null", "~", "none") or text[0] in "[{!&*|>@`%":
        return None
    return plain if text[0] in "'\"" else _value(plain)


def _overrides(items: list[tuple[str, Value]]) -> Iterator[tuple[str, Value]]:
    """Hydra's list of overrides, `key=value` or `+key=value`; lists, deletions (`~key`) and empty values are not."""
    for key, item in items:
        match = re.fullmatch(rf"\+{{0,2}}({_KEY})=(.*)", str(item))
        if key == "" and match and (value := _scalar(match[2] or "null")) is not None:
            yield match[1], value
