"""`make coverage`: thousands of new random problems against dense truth, every bound counted, docs/coverage.md written.

    python tests/coverage_run.py [--problems 2000] [--workers 2] [--seed S] [--against OTHER.jsonl]

Draws a new seed every time and prints it; `--seed S` goes on with a run that was stopped, or repeats it elsewhere.
Each problem is one line of `.coverage/S.jsonl`, written when it is done. `--against` compares the widths of the
bounds with those that another version found on the same problems.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import secrets
import signal
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER, PAGE = ROOT / ".coverage", ROOT / "docs" / "coverage.md"
# Seconds after which a problem counts as one that did not end; wall time, on a machine that others use, too.
LIMIT = 900


def _start() -> None:
    """In every worker: one thread, no chatter, Ctrl-C left to the parent."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """A worker whose parent was killed would go on with what is queued, and then wait for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _too_slow(_signal: int, _frame: Any) -> None:
    raise TimeoutError(f"not done after {LIMIT} seconds")


def examine(seed: int, index: int) -> dict[str, Any]:
    """One problem: its kinds, every check, or the error that it ended with. Plain types."""
    from bounds_checked import checks
    from dense_truth import dense_truth
    from landscape import spectrum
    from landscape.errors import LandscapeError
    from random_problems import draw

    begun, drawn = time.perf_counter(), draw(seed, index)
    record: dict[str, Any] = {
        "problem": index,
        "kinds": drawn.kinds,
        "settings": {k: str(v) for k, v in drawn.settings.items()},
    }
    try:
        truth = dense_truth(drawn.problem, drawn.settings.get("operator", "hessian"), drawn.settings.get("params", ()))
    except FloatingPointError as error:
        return record | {"no truth": str(error)}
    record |= {"parameters": len(truth.eigenvalues), "scale": truth.scale}
    try:
        result = spectrum(drawn.problem, **drawn.settings)
    except LandscapeError as error:
        record["refused"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    except TimeoutError:
        raise
    except Exception:
        record["crashed"] = traceback.format_exc(limit=-4)
    else:
        found = checks(drawn, result, truth)
        record["checks"] = [[c.name, c.rate, bool(c.missed), float(f"{c.width:.6g}")] for c in found]
        record["missed"] = {c.name: c.detail for c in found if c.missed}
    return record | {"seconds": round(time.perf_counter() - begun, 2)}


def examine_within_limit(seed: int, index: int) -> dict[str, Any]:
    """`examine`, ended by an alarm where it hangs."""
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, _too_slow)
        signal.alarm(LIMIT)
    try:
        return examine(seed, index)
    except Exception as error:
        from random_problems import draw

        kind = "too slow" if isinstance(error, TimeoutError) else "crashed"
        return {"problem": index, "kinds": draw(seed, index).kinds, kind: traceback.format_exc(limit=-4)}
    finally:
        if hasattr(signal, "SIGALRM"):
            signal.alarm(0)


def read(path: Path) -> list[dict[str, Any]]:
    """The problems that are done, in order; a last line that a kill cut short does not count."""
    done: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        done[record["problem"]] = record
    return [done[i] for i in sorted(done)]


def say(record: dict[str, Any], seed: int) -> None:
    """What went wrong with a problem, on stderr at once."""
    where = f"seed {seed} problem {record['problem']}"
    about = ", ".join(f"{k} {v}" for k, v in record["kinds"].items())
    for name, detail in record.get("missed", {}).items():
        certain = any(c[0] == name and c[1] == 0 for c in record["checks"])
        if certain:
            print(f"VIOLATED {where} ({about}): {name}: {detail}", file=sys.stderr)
    if "crashed" in record:
        print(f"CRASHED {where} ({about}):\n{record['crashed']}", file=sys.stderr)


def solve(seed: int, wanted: list[int], path: Path, workers: int) -> None:
    """Examine the problems in processes of their own; every finished one is appended and flushed."""
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_start)
    with path.open("a") as file:
        futures = [pool.submit(examine_within_limit, seed, i) for i in wanted]
        begun = time.perf_counter()
        try:
            for number, future in enumerate(concurrent.futures.as_completed(futures), 1):
                record = future.result()
                file.write(json.dumps(record) + "\n")
                file.flush()
                say(record, seed)
                if number % 50 == 0:
                    left = (time.perf_counter() - begun) / number * (len(wanted) - number)
                    print(f"{number} of {len(wanted)} done, {left / 60:.0f} minutes left", file=sys.stderr)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            print(f"\nstopped; go on with: python tests/coverage_run.py --seed {seed}", file=sys.stderr)
            raise


def main() -> int:
    """Run, print the table, write the page; 1 where a bound is broken, 130 where the run was stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, help="of a run to go on with or to repeat; new if left out")
    parser.add_argument("--against", type=Path, help="results of another version on the same seed")
    parser.add_argument("--no-page", action="store_true", help="leave docs/coverage.md alone")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the workers, before they import torch
    from coverage_page import failed, page, table, widths

    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{seed}.jsonl"
    have = {r["problem"] for r in read(path)}
    status = 0
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    try:
        solve(seed, [i for i in range(options.problems) if i not in have], path, options.workers)
    except KeyboardInterrupt:
        status = 130
    records = [r for r in read(path) if r["problem"] < options.problems]
    print(table(records))
    if options.against:
        print(widths(records, read(options.against)))
    if status == 0 and not options.no_page:
        PAGE.write_text(page(seed, records))
        print(f"wrote {PAGE.relative_to(ROOT)}", file=sys.stderr)
    if status:
        sys.stdout.flush()
        os._exit(status)  # the workers end with this process; nobody waits for what they are at
    return int(failed(records))


if __name__ == "__main__":
    sys.exit(main())
