"""The axis `robustness/*`: what corruptions and adversaries leave of the accuracy.

`corruptions` makes the corrupted images (`noise`, `blur`, `weather`, `digital`; `scale` says how they grow with
the image), `adversarial` runs the attacks (`gradient`, `fab`, `square`), and `measure` makes figures of both.
This file imports none of them, because what lists the techniques must not wait for torch and scipy.
"""
