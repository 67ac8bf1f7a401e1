"""Results of training: rows of a table measured on collections, compared, and rendered as text, JSON, Markdown and HTML."""
