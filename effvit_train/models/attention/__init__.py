"""Cheaper attention in the place of a ViT's own, block by block (`model.attention`).

`kinds` is the table of what there is, `forms` reads what the user typed, `plan` makes of it an entry for each
block of the architecture record, `swap` builds them into a model. See docs/attention.md.
"""
