"""The report: one HTML page about a bundle, made from its files alone."""
