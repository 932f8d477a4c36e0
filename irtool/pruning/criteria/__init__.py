"""What channels are worth: criteria that read weights, and criteria that see images."""
