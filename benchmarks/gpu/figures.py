"""The page that a session leaves: figures.md, which docs/gpu.md can take over as it stands."""

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks import table


def page(results: dict[str, Any]) -> str:
    """The results as Markdown: what they are of, how each step ended, and a table for each."""
    of = results["machine"]
    words = [
        of.get("device") or "no GPU", f"{of['memory_gb']} GB" if of.get("memory_gb") else None,
        f"driver {of['driver']}" if of.get("driver") else None, f"torch {of.get('torch', 'missing')}",
        f"CUDA {of['cuda']}" if of.get("cuda") else None, f"Python {of['python']}",
        f"commit {of['commit']}" if of.get("commit") else None, of["date"],
    ]  # fmt: skip
    lines = [f"{', '.join(filter(None, words))}."]
    if results["dry"]:
        lines.append("A dry run, on the CPU with small sizes: it shows that the steps work, and nothing of a GPU.")
    steps = results["steps"]
    rows = [[entry["what"], entry["status"], f"{entry['seconds']:.0f}"] for entry in steps]
    lines += ["", table.markdown(["step", "result", "s"], rows), ""]
    for entry in steps:
        if entry["rows"] or entry.get("note"):
            lines += [f"### {entry['what']}", "", *_section(entry), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _section(entry: dict[str, Any]) -> list[str]:
    compared = [row for row in entry["rows"] if "contender" in row]
    checks = [row for row in entry["rows"] if "contender" not in row]
    lines = []
    if compared:
        lines += [table.format_suite(rounds_of(compared)), *_ratio(compared)]
    if checks:
        said = {True: "yes", False: "NO", None: "not tried"}
        rows = [[row["what"], said[row.get("ok")], str(row.get("figure", ""))] for row in checks]
        lines += [table.markdown(["what", "holds", "figure"], rows)]
    if entry.get("note"):
        lines += ["", "```text", entry["note"].replace("```", "'''"), "```"]
    return lines


def rounds_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, dict[str, Any]]]:
    """Rows of contenders as benchmarks/table.py takes them: a mapping for each round."""
    rounds: dict[int, dict[str, dict[str, Any]]] = {}
    for row in rows:
        rounds.setdefault(row["round"], {}).setdefault(row["contender"], {}).update(row)
    return list(rounds.values())


def _ratio(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Steps per second of the launcher over those of the other, the median over the rounds that have both."""
    ratios = [a / b for a, b in table.paired(rounds_of(rows), "launcher", "by hand", "steps_per_second")]
    if not ratios:
        return []
    rounds = "one round" if len(ratios) == 1 else f"{len(ratios)} rounds"
    return ["", f"Launcher over the hand-written loop: {statistics.median(ratios):.2f} times the steps, {rounds}."]
