"""Privacy mechanisms, one module or package each (see `effvit_train.parts`). None exists yet."""
