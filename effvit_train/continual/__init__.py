"""Strategies against forgetting in streams, one module or package each (see `effvit_train.parts`)."""
