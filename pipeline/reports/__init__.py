"""Numbers in, pictures and HTML pages out."""
