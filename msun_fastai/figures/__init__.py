"""Pictures of what was tested: accuracy and cost against size, routing, confusions.

Each has its numbers as rows (`accuracy_rows`), a drawing of such rows (`draw_accuracy`) and both in
one (`plot_accuracy`), so that a picture and the CSV beside it cannot differ. The drawings are
matplotlib's Figures and not pyplot's; `plots.save_figure` writes them.
"""

from msun_fastai.figures.confusion import (
    confused,
    confusion_rows,
    draw_confusion,
    most_confused,
    plot_confusion,
    shown_classes,
)
from msun_fastai.figures.images import draw_images, plot_images
from msun_fastai.figures.routing import draw_routing, plot_routing, routing_rows
from msun_fastai.figures.sizes import (
    accuracy_rows,
    cost_rows,
    draw_accuracy,
    draw_cost,
    draw_matrix,
    draw_means,
    matrix_rows,
    plot_accuracy,
    plot_cost,
    plot_matrix,
)
from msun_fastai.figures.training import draw_training, training_rows

__all__ = [
    "accuracy_rows",
    "confused",
    "confusion_rows",
    "cost_rows",
    "draw_accuracy",
    "draw_confusion",
    "draw_cost",
    "draw_images",
    "draw_matrix",
    "draw_means",
    "draw_routing",
    "draw_training",
    "matrix_rows",
    "most_confused",
    "plot_accuracy",
    "plot_confusion",
    "plot_cost",
    "plot_images",
    "plot_matrix",
    "plot_routing",
    "routing_rows",
    "shown_classes",
    "training_rows",
]
