"""What a trained network does with the sizes of an image: the paper's Figures 2, 7 and 8."""
