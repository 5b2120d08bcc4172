"""Work on a Ray cluster, or on a Ray that is started for it on this machine."""
