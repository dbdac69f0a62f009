r"""A comparison as a table for LaTeX, grid.tex, to be taken into a paper by \input; it needs \usepackage{booktabs}."""

import re
from pathlib import Path

from launcher.core.files import write_text
from launcher.sweep.comparison import Comparison
from launcher.sweep.seed_groups import Group

ROWS = 40  # the best; more are no table of a paper
SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "[": "{[}", "]": "{]}",
}  # fmt: skip


def escaped(text: str) -> str:
    """A text such that LaTeX prints it as it is: a cell that begins with a bracket is no argument of the row's end."""
    return re.sub("|".join(map(re.escape, SPECIAL)), lambda match: SPECIAL[match[0]], text)


def write_latex(sweep: Comparison) -> Path:
    """Write grid.tex, one row for each group of trials that differ by their seed alone, and return its path."""
    path = sweep.path / "grid.tex"
    write_text(path, table_of(sweep))
    return path


def table_of(sweep: Comparison) -> str:
    """The table; the best mean is bold, and so is each that the test does not tell from it."""
    names = list(sweep.groups[0].settings) if sweep.groups else []
    groups = sweep.groups[:ROWS]
    alike = {id(pair.b) for pair in sweep.pairs if pair.a is groups[0] and pair.p is not None and not pair.decided}
    lines = [
        f"% {sweep.metric} of {len(sweep.measured)} finished trials. {sweep.verdict}",
        "% Mean, 95 % interval by Student's t, number of seeds. Bold: the best mean, and those to which no difference",
        "% is shown (paired t-test over seeds, Holm's correction, p < 0.05).",
        rf"\begin{{tabular}}{{{'l' * len(names)}rlr}}",
        r"\toprule",
        " & ".join([*map(escaped, names), escaped(sweep.metric), r"95\,\% interval", "seeds"]) + r" \\",
        r"\midrule",
    ]
    for place, group in enumerate(groups):
        lines.append(_row(group, place == 0 or id(group) in alike))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _row(group: Group, bold: bool) -> str:
    estimate = group.estimate
    mean = "diverged" if group.diverged else f"${estimate.mean:.4g}$"
    if bold and not group.diverged:
        mean = rf"$\mathbf{{{estimate.mean:.4g}}}$"
    ends = "--" if estimate.low is None else f"$[{estimate.low:.4g}, {estimate.high:.4g}]$"
    return " & ".join([*map(escaped, group.settings.values()), mean, f"{{{ends}}}", str(group.n)]) + r" \\"
