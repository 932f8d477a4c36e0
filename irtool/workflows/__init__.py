"""Tables, plots and HTML pages about a result."""
