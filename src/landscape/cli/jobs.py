"""What every analysis command does with a checkpoint: load it, see whether its result is there, say where from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.cli.terminal import plain, print_note

if TYPE_CHECKING:
    from landscape.checkpoints.load import Loaded
    from landscape.checkpoints.source import Source
    from landscape.problem.distributed import Ranks
    from landscape.problem.problem import Problem
    from landscape.results.fields import Provenance, Spent

# Settings that change how an answer is computed, but not the answer.
NO_MATTER = ("memory", "block")


@dataclass(frozen=True)
class Job:
    """One checkpoint of a command, loaded.

    Attributes:
        command: the subcommand. path: of the checkpoint. place: of the result file.
        loaded: from `load_problem`. problem: the same with its batches read. fingerprint: of these.
        settings: of the analysis. identity: of the result. ranks: the processes that share the data, if any do.
    """

    command: str
    path: Path
    place: Path
    loaded: Loaded
    problem: Problem
    fingerprint: str
    settings: Mapping[str, Any]
    identity: str
    ranks: Ranks | None = None

    def is_done(self) -> bool:
        """Whether the place holds this very result.

        Raises:
            StorageError: it holds a different one.
        """
        from landscape.errors import StorageError
        from landscape.results.store import stored_identity

        stored = stored_identity(self.place, self.command)
        if stored is None or stored[1] == "failed":
            return False
        if stored[0] != self.identity:
            what, hint = self._other()
            raise StorageError(
                f"{self.place} holds another result: {what}",
                f"name another folder with --out{hint}, or overwrite it with --force",
            )
        return stored[1] == "complete"

    def _other(self) -> tuple[str, str]:
        """In what the result that lies there differs from this one, and what may have been meant instead."""
        from landscape.results.store import read_result

        how = read_result(self.place, self.command).provenance
        if how.sha256 != self.loaded.checkpoint.sha256:
            return f"that of {how.checkpoint}", " (or all checkpoints in one command, which keeps their folders)"
        mine, stored = ({k: _said(v) for k, v in s.items()} for s in (self.settings, how.settings))
        changed = [
            f"{k} was {stored.get(k, 'not there')}, is {v}"
            for k, v in mine.items()
            if k not in NO_MATTER and stored.get(k) != v
        ]
        return "; ".join(changed[:3]) or "of other data, of another problem function or --key", ""

    def provenance(self, spent: Spent, status: str = "complete") -> Provenance:
        """How the result came about."""
        from landscape.results.fields import Provenance
        from landscape.results.identity import versions

        found = self.loaded.checkpoint
        return Provenance(
            command=self.command,
            identity=self.identity,
            status=status,
            settings=self.settings,
            checkpoint=str(self.path),
            sha256=found.sha256,
            header=found.header,
            coordinates=found.coordinates,
            data_fingerprint=self.fingerprint,
            versions=versions(),
            device=spent.device,
            dtype=spent.dtype,
            seed=int(self.settings["seed"]),
            products=spent.products,
            seconds=spent.seconds,
            plan=spent.plan,
            notes=(*self.loaded.notes, *spent.notes),
        )


def _said(value: Any) -> str:
    """A setting as a result file gives it back."""
    return "none" if value is None else json.dumps(plain(value), sort_keys=True, default=str)


def load_job(source: Source, command: str, path: Path, place: Path, settings: Mapping[str, Any], quiet: bool) -> Job:
    """Read a checkpoint and its problem's data; notes are printed.

    Raises:
        CheckpointError, ProblemError, UsageError: as `load_problem`.
    """
    from landscape.checkpoints.checkpoint import read_checkpoint
    from landscape.checkpoints.load import load_problem
    from landscape.problem.batches import fingerprint, read_batches
    from landscape.results.identity import identity

    checkpoint = read_checkpoint(path, source.allow_globals, source.key)
    loaded = load_problem(checkpoint, source.problem, source.sets, source.data, source.loss, source.batchnorm)
    for note in loaded.notes:
        print_note(f"note: {note}", quiet)
    problem = dataclasses.replace(loaded.problem, data=read_batches(loaded.problem))
    data = fingerprint(list(problem.data))
    answer = {k: v for k, v in settings.items() if k not in NO_MATTER}
    parts = {"checkpoint": checkpoint.sha256, "problem": loaded.problem_identity, "data": data, "settings": answer}
    parts |= {"key": checkpoint.key} if checkpoint.key is not None else {}
    return Job(command, path, place, loaded, problem, data, settings, identity(parts))
