"""Affine fusion: maximal affine regions of a program become one convolution each, proved.

`form` is the algebra, `operations` reads it off canonical nodes, `region` finds what can be one
convolution, `price` decides what should be, `emit` builds it, `prove` checks it in float64, and
`fuse` puts them together.
"""
