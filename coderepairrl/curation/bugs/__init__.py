"""Kinds of bugs inside of functions, by family. A rule is a function from a syntax node to edits of the source."""
