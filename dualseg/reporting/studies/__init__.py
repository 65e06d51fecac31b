"""The tables of a study -> what is read of it: table.md, table.tex, figures, comparisons, one page."""
