"""What the export compiler gains over a plain exporter, measured on this machine."""
