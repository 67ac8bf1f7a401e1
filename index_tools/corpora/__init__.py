"""Documents with queries and judgments, and the files that hold them."""
