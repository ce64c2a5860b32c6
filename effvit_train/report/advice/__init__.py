"""From the cards at hand: what each technique does, what to add next, what to try."""
