"""What an operator is asked for, and what it chose: plain data, stored with every result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from landscape.errors import UsageError

Operator = Literal["hessian", "ggn", "residual"]
Strategy = Literal["auto", "kept", "linearize", "recompute"]
OPERATORS: tuple[str, ...] = get_args(Operator)
STRATEGIES: tuple[str, ...] = get_args(Strategy)[1:]


@dataclass(frozen=True)
class Request:
    """What is wanted of an operator.

    Attributes:
        operator: hessian | ggn | residual. strategy: auto | kept | linearize | recompute.
        batch_size: samples a chunk; None: chosen. block: vectors a launch; None: chosen.
        expected_products: how many products will be asked for; decides what planning is worth.
        widest: most vectors that will be asked for at once.
        budget: bytes for kept graphs.

    Raises:
        UsageError: an operator or strategy that does not exist.
    """

    operator: str = "hessian"
    strategy: str = "auto"
    batch_size: int | None = None
    block: int | None = None
    expected_products: int = 100
    widest: int = 64
    budget: float = float("inf")

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise UsageError(f"there is no operator {self.operator!r}", f"choose one of {', '.join(OPERATORS)}")
        if self.strategy not in ("auto", *STRATEGIES):
            raise UsageError(f"there is no strategy {self.strategy!r}", f"choose one of auto, {', '.join(STRATEGIES)}")


@dataclass(frozen=True)
class Plan:
    """What an operator chose, and why; stored with the result.

    Attributes:
        operator: hessian | ggn | residual.
        strategy: kept | linearize | recompute.
        mode: reverse (double backward) or forward (jvp of grad).
        chunk: samples in the largest chunk.
        chunks: number of chunks; kept_chunks: how many of them keep their graph.
        block: vectors taken in one launch.
        bytes_per_chunk: what one kept chunk holds.
        gradient_seconds, product_seconds: measured, over all data, a vector (NaN: not measured).
        seconds_by_block: (block, seconds a vector) for every block that was timed.
        planning_seconds: spent on choosing.
        notes: fall-backs and halvings, in words.
    """

    operator: str
    strategy: str
    mode: str = "reverse"
    chunk: int = 0
    chunks: int = 0
    kept_chunks: int = 0
    block: int = 1
    bytes_per_chunk: int = 0
    gradient_seconds: float = float("nan")
    product_seconds: float = float("nan")
    seconds_by_block: tuple[tuple[int, float], ...] = ()
    planning_seconds: float = 0.0
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for files."""
        return asdict(self)
