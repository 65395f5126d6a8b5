"""Figures of results, and the histogram for the terminal.

`choice.draw(results, by)` calls `draw` of the file of their analysis, which takes result objects, never paths, and
returns a matplotlib figure; `style.render(figure, suffix)` makes it bytes. `slice_page.draw_page(result)` makes a page
of a slice. Nothing is imported here: the histogram of the
terminal must not wait for matplotlib.
"""
