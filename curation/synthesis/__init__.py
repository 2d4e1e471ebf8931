"""Documents made from documents by a language model: a source like any other, whose parents are known."""
