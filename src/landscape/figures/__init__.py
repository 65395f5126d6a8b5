"""Figures of results, and the histogram for the terminal.

`spectrum.draw_spectrum(result)`, `width.draw_spectra(results, by)`, `surfaces.draw_slices(results, by)` … take result
objects, never paths, and return a matplotlib figure; `style.render(figure, suffix)` makes it bytes.
`interactive.draw_page(result)` makes a page of a slice. Nothing is imported here: the histogram of the
terminal must not wait for matplotlib.
"""
