"""Vision transformers with fewer tokens: similar ones are merged, or those that the class token looks past are dropped.

`steps` says what becomes of tokens, `blocks` are timm's blocks that do it, `change` puts them into a model.
"""
