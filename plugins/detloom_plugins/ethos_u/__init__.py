"""Export for Arm's Ethos-U NPUs: an int8 LiteRT file, compiled by Vela."""
