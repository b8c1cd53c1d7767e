"""The `qnn` backend: Snapdragon's HTP."""
