"""A person at the UI: a real browser, driven through what `fuploader dev` serves."""
