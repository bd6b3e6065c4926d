"""The HTTP layer: everything that knows paths, headers, statuses and JSON, and nothing that knows pixels.

`app` puts it together; `server` and `protocol` run it on sockets. A request passes `middleware` (id, keys,
log, metrics), a handler (`routes`, `oip`, `ops`), `uploads` (the body under its limits) and `parameters`
(what was asked for); the answer is shaped by `schemas`, a failure by `problems`.
"""
