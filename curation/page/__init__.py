"""`curate report`: one self-contained page about a manifest, for the person who decides whether to train on it."""
