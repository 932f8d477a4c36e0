"""Models, weights, images and their shapes, as users name them."""
