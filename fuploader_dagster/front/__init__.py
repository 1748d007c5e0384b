"""The HTTP front door, `fuploader serve`: publish, ask, process and pause over HTTP.

One module per idea: `app` puts routes together, `tokens` says who may what, `publishing` gives
requests to the queue in groups, and each module of routes has a function `routes()`.
"""
