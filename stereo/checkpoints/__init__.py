"""Weight files: containers on disk (`files`) and their way into a network (`load`)."""
