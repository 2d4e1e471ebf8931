"""`curate init`: a commented recipe from the files that lie at some paths."""
