"""The mathematics of attacks on a trained model: who was in, how well can one tell, what does that prove.

`data.planting` decides who is in, `membership` scores it, `figures` says how well the scores do, and `one_run`
turns guesses into a lower bound on epsilon. Pure numpy and scipy: no module here trains or reads anything,
and this file imports none of them, because what lists the techniques must not wait for scipy.
"""
