"""The axis `transparency/*`: whether maps of what a model looked at are true to the model.

`attention` reads attention matrices and their gradients, `maps` explains predictions, `faithfulness` judges
the explanations, and `measure` makes numbers for the card of it. This file imports none of them, because
what lists the parts must not wait for torch.
"""
