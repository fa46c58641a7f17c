"""Kinds of bugs inside of functions, by family: one rule a kind, a function from a syntax node to edits of the source."""
