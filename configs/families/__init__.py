"""Published families: how their folders become systems, one file per family."""
