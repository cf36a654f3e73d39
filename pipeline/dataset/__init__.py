"""Rows in, arrays out: sources, tables, splits, offline transforms, random affine maps and views."""
