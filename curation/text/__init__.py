"""What a text is made of: words, tokens, identifiers, passages; and how it is cleaned."""
