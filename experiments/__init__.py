"""The claims of the papers behind this project, each at a size that two cores reach: one script, one page and one file of results a claim."""
