"""Two models, or two settings over several seeds, on the same test images: `effvit compare`."""
