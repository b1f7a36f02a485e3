"""Hours of random faults and random deaths on a lab, and a look whether everything is as before."""
