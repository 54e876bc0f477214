"""How generated video is measured: readers, and numbers made from what they read."""
