"""A matplotlib figure that a notebook shows by itself."""

from __future__ import annotations

from io import BytesIO

from matplotlib.figure import Figure


class InlineFigure(Figure):
    """A figure without pyplot: the last value of a cell is shown as a picture, and nothing else is.

    IPython knows how to show figures only where pyplot has drawn one before.
    """

    def _repr_png_(self) -> bytes:
        data = BytesIO()
        self.savefig(data, format="png")
        return data.getvalue()
