"""The bodies of requests and responses: one module a group of routes, and what they share.

`request` has the fields that several routes read, `errors` what a refusal looks like, `json_body` the reading of large
bodies. Nothing here knows the application, only what clients send and get.
"""
