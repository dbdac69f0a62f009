import re

from launcher.sweep.comparison import read_sweep
from launcher.sweep.latex import escaped, write_latex


def test_every_letter_is_printed_as_it_is():
    assert escaped(r"a_b & 50% {x} $5 #1 ~ ^ \z") == (
        r"a\_b \& 50\% \{x\} \$5 \#1 \textasciitilde{} \textasciicircum{} \textbackslash{}z"
    )
    assert escaped("[0.9,0.999]") == "{[}0.9,0.999{]}"


def test_each_row_has_its_figures_and_as_many_cells_as_columns(made):
    path, _ = made
    text = write_latex(read_sweep(path, None, None)).read_text()
    lines = text.splitlines()
    begin = next(line for line in lines if line.startswith(r"\begin{tabular}"))
    columns = len(re.fullmatch(r"\\begin\{tabular\}\{([lr]+)\}", begin)[1])
    rows = [line for line in lines if line.endswith(r"\\")]
    assert columns == 4 and all(len(re.split(r"(?<!\\)&", row)) == columns for row in rows)
    # The best is bold, and what differs from it is not.
    assert [line for line in lines if line.startswith("\\") and "rule" in line] == [
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
    ]
    assert (
        r"$\mathbf{0.6}$" in rows[1]
        and r"$[0.3516, 0.8484]$" in rows[1]
        and r"$0.9$" in rows[2]
        and rows[1].startswith("0.1 & ")
    )


def test_what_is_not_told_from_the_best_is_bold_too(made):
    path, _ = made
    for number, loss in ((3, 0.45), (4, 0.7), (5, 0.7)):
        (path / f"p{number}/summary.json").write_text(
            f'{{"status": "finished", "final": {{"eval/loss": {loss}}}, "best": {{}}}}'
        )
    rows = [line for line in write_latex(read_sweep(path, None, None)).read_text().splitlines() if line.endswith(r"\\")]
    assert all("mathbf" in row for row in rows[1:]) and len(rows) == 3
