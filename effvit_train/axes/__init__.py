"""What an audit does with a trained model: which axes are measured, at which level, on which images.

`audit/` holds the measures, pure functions; here they meet a run. Importing this package imports no torch.
"""
