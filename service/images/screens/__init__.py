"""One module a container format: `screen(data, limits)` gives the `Source`, with only the bytes that make the
pixels.

The walk through a container is ours, because the libraries' own are what hostile files attack: metadata that
inflates (zTXt, iCCP), EXIF directories of thousands of entries, floods of tiny chunks, thumbnails, second
pictures, trailing files. All of it is dropped here; nothing is decompressed. Refused: sizes over a limit
(TooLarge), and what is truncated, contradictory or without end (BadImage).
"""
