"""What runs beside an exported file on a device, without torch and without detloom."""
