"""Somebody else's ONNX classifier → a verified file of ours. The one room that knows foreign graphs; needs
onnx and numpy, never torch.

A file goes through: `graph` (constants folded, shapes known), `recognise` (how its end makes class scores, by
structure), `surgery` (the served graph), `linearise` (explain.onnx, where the head is not linear), `verify`
(the original against the result), and then the last steps of every export, `export.finish`.
"""
