"""Figures of results, and the histogram for the terminal.

`spectrum.draw_spectrum(result)` and `width.draw_spectra(results, by)` take result objects, never paths, and return a
matplotlib figure; `style.render(figure, suffix)` makes it bytes. Nothing is imported here: the histogram of the
terminal must not wait for matplotlib.
"""
